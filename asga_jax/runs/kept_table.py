"""The copy of its latency table that a search keeps in its work directory."""

import pathlib

import ml_collections
from absl import logging

from asga_jax.cost import latency_table
from asga_jax.runs import workdir


def kept_path(
  config: ml_collections.ConfigDict, directory: pathlib.Path
) -> pathlib.Path:
  """Name the search's own copy of its latency table."""
  suffix = pathlib.Path(config.latency_table).suffix
  return directory / f"latency_table{suffix}"


def check(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
  """Raise WorkdirError for another latency table than the search began with."""
  kept = kept_path(config, directory)
  if not config.latency_table or not kept.exists():
    return
  if latency_table.load(kept) != latency_table.load(config.latency_table):
    raise workdir.WorkdirError(
      f"{config.latency_table} is not the latency table that the search in"
      f" {directory} began with, {kept}: put that back, or choose another"
      " --workdir"
    )


def keep(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
  """Copy the latency table, so that later exports count as the search did."""
  if not config.latency_table:
    return
  table = latency_table.load(config.latency_table)
  logging.info("latencies: %s", table.how or "of unknown origin")
  kept = kept_path(config, directory)
  if not kept.exists():
    latency_table.save(table, kept)
