"""The directory of a run: its name, its configuration, its latency table."""

import hashlib
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import jax
import ml_collections
from absl import logging

from asga_jax import files
from asga_jax.cost import latency_table
from asga_jax.runs import config_checks, processes

CONFIG_NAME = "config.json"
_SEEN = 60.0  # seconds
_SHOWN = 8  # differing keys that an error names


class WorkdirError(ValueError):
  """A work directory that cannot be used for this run."""


def unwritable(directory: pathlib.Path, error: OSError) -> WorkdirError:
  """Say that a work directory cannot be written to."""
  return WorkdirError(
    f"the work directory {directory} cannot be written to: "
    f"{error.strerror or error}; choose another with --workdir"
  )


def _canonical(value: Any) -> Any:
  """Give equal numbers one form, so that 1 and 1.0 hash alike."""
  if isinstance(value, list):
    return [_canonical(item) for item in value]
  if isinstance(value, float) and value.is_integer():
    return int(value)
  return value


_OF_PLACE = ("shard", "model_devices", "workers", "bad_images")


def _flat(config: config_checks.Config) -> dict[str, Any]:
  """List what decides a run; where its arrays lie, or are kept, does not."""
  flat = config_checks.flatten(config)
  return {
    key: _canonical(value)
    for key, value in flat.items()
    if key.rpartition(".")[2] not in _OF_PLACE
    and not key.startswith("checkpoints.")
  }


def config_sha256(config: config_checks.Config) -> str:
  """Hash a configuration: the sha256 of its canonical JSON.

  The order of keys, tuples against lists, and 1 against 1.0 do not count.

  Args:
    config: a ConfigDict or a mapping, nested to any depth.

  Returns:
    64 hexadecimal digits.

  Raises:
    ConfigError: if a value cannot be written as JSON.
  """
  text = json.dumps(_flat(config), sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def default_workdir(
  config_name: str, config: config_checks.Config
) -> pathlib.Path:
  """Name the directory of a run, the same for the same configuration.

  Args:
    config_name: a name, or the path of a config file with or without an
      argument behind a colon: `configs/resnet18.py:cifar10`.
    config: the configuration.

  Returns:
    `runs/<name>-<first 8 digits of the hash>`, e.g. runs/resnet18-cifar10-….
  """
  file, _, argument = config_name.partition(":")
  stem = pathlib.Path(file).stem
  name = f"{stem}-{argument}" if argument else stem
  safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
  return pathlib.Path("runs") / f"{safe}-{config_sha256(config)[:8]}"


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
  """Describe the keys in which two configurations differ."""
  found, wanted = _flat(found), _flat(wanted)
  lines = []
  for key in sorted(found.keys() | wanted.keys()):
    told = [
      json.dumps(side[key]) if key in side else "absent"
      for side in (found, wanted)
    ]
    if told[0] != told[1]:
      lines.append(f"{key}: {told[0]} there, {told[1]} now")
  return lines


_OF_DEVICES = {
  "shard": (),
  "perturbation": "global",
  "batch_norm": "global",
  "model_devices": 1,
  "accumulate": 1,
  "compute_dtype": "float32",
  "skip_nonfinite": 0,
}
# What runs did before there was a setting for it.
_BEFORE_SETTINGS = {
  "data": {
    "crop": 1.0,
    "normalisation": "",
    "preset": "",
    "classes": 0,
    "stream": False,
    "workers": 0,
    "bad_images": 0,
  },
  "search": {
    "freeze_batch_norm": False,
    "prior_strength": 30.0,
    "sampled": False,
    **_OF_DEVICES,
  },
  "finetune": _OF_DEVICES,
  "pretrain": {"steps": 0, "learning_rate": 0.05},
  "prior": {"score": "", "images": 32},
  "choice": {
    "score": "",
    "images": 128,
    "policies": 240,
    "evaluations": 0,
  },
  "post_training": {"curve": ()},
  "checkpoints": {"keep": 3, "best": 0},
}


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Read the configuration of the run in a directory.

  Args:
    path: the directory.

  Returns:
    Nested dicts; what was a tuple is a list.

  Raises:
    WorkdirError: if there is no `config.json`, or a damaged one.
  """
  file = pathlib.Path(path) / CONFIG_NAME
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
      raise ValueError("it holds no configuration")
    return config_checks.to_plain(_filled(found))
  except (OSError, ValueError) as error:
    raise WorkdirError(
      f"{file} cannot be read ({error}); mend or remove it, or choose another "
      "--workdir"
    ) from error


def _filled(found: dict[str, Any]) -> dict[str, Any]:
  """Add the settings that there were not yet, where it is a whole run's."""
  groups = {
    name: found[name]
    for name, known in (
      ("data", "image_size"),
      ("search", "mode"),
      ("finetune", "ema_decay"),
      ("post_training", "scored_batches"),
    )
    if isinstance(found.get(name), dict) and known in found[name]
  }
  if "search" in groups:
    for name in ("pretrain", "prior", "choice"):
      groups[name] = found.get(name, {})
  if {"search", "finetune"} & groups.keys():
    groups["checkpoints"] = found.get("checkpoints", {})
  return found | {
    name: _BEFORE_SETTINGS[name] | group for name, group in groups.items()
  }


def is_quantization(config: config_checks.Config) -> bool:
  """Tell whether a run is a quantization without training."""
  return (
    "post_training" in config
    and "search" not in config
    and "finetune" not in config
  )


def open_workdir(
  path: str | os.PathLike[str],
  config: config_checks.Config,
  *,
  write: bool = True,
) -> pathlib.Path:
  """Create the directory of a run, or opens that of the same configuration.

  Writes `config.json` where there is none. Nothing is overwritten.

  Args:
    path: the directory.
    config: the configuration of the run.
    write: whether to create the directory and its `config.json` where there is
      none: once the configuration has been found good. Otherwise it is only
      checked that this can be done.

  Returns:
    The directory, which can be written to.

  Raises:
    WorkdirError: if the directory cannot be made or written to, if its
      `config.json` is damaged, or if that differs from `config` (the keys that
      differ are named with both values).
    ConfigError: if a value of `config` cannot be written as JSON.
  """
  directory = pathlib.Path(path)
  wanted = config_checks.to_plain(config)
  try:
    if write:
      directory.mkdir(parents=True, exist_ok=True)
    whole = (directory, *directory.absolute().parents)
    there = next(place for place in whole if os.path.lexists(place))
    with tempfile.TemporaryFile(dir=there) as probe:
      probe.write(b"can be written to")
  except OSError as error:
    raise unwritable(directory, error) from error
  file = directory / CONFIG_NAME
  made = write and processes.first() and not file.exists()
  if made:
    files.write_text_atomic(file, json.dumps(wanted, indent=2) + "\n")
  if write:
    processes.wait("the work directory is made")
    _wait_for(file)
  if made or not file.exists():
    return directory
  differences = _differences(read_config(directory), wanted)
  if differences:
    rest = len(differences) - _SHOWN
    raise WorkdirError(
      f"{directory} belongs to a run of another configuration:\n  "
      + "\n  ".join(differences[:_SHOWN])
      + (f"\n  and {rest} more" if rest > 0 else "")
      + "\nchoose another --workdir, or give the configuration of that run"
    )
  return directory


def _wait_for(file: pathlib.Path) -> None:
  """Wait until this process sees what the first has written.

  Raises:
    WorkdirError: it does not, in the time that file systems over a network
      take.
  """
  late = time.monotonic() + _SEEN
  while not file.exists():
    if time.monotonic() > late:
      raise WorkdirError(
        f"process {jax.process_index()} does not see {file}, which process 0"
        " has written; expected a work directory that all processes share"
      )
    time.sleep(0.5)


def kept_table(
  config: ml_collections.ConfigDict, directory: pathlib.Path
) -> pathlib.Path:
  """Name the search's own copy of its latency table."""
  suffix = pathlib.Path(config.latency_table).suffix
  return directory / f"latency_table{suffix}"


def check_table(
  config: ml_collections.ConfigDict, directory: pathlib.Path
) -> None:
  """Raise WorkdirError for another latency table than the search began with."""
  kept = kept_table(config, directory)
  if not config.latency_table or not kept.exists():
    return
  if latency_table.load(kept) != latency_table.load(config.latency_table):
    raise WorkdirError(
      f"{config.latency_table} is not the latency table that the search in"
      f" {directory} began with, {kept}: put that back, or choose another"
      " --workdir"
    )


def keep_table(
  config: ml_collections.ConfigDict, directory: pathlib.Path
) -> None:
  """Copy the latency table, so that later exports count as the search did."""
  if not config.latency_table:
    return
  table = latency_table.load(config.latency_table)
  logging.info("latencies: %s", table.how or "of unknown origin")
  kept = kept_table(config, directory)
  if processes.first() and not kept.exists():
    latency_table.save(table, kept)
