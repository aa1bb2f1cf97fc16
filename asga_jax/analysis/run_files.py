"""What the work directory of a search holds, read and checked."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from asga_jax import policy as policy_lib
from asga_jax import sharpness
from asga_jax.analysis import run_warnings
from asga_jax.training import config as config_lib
from asga_jax.training import metrics_log, workdir

PARETO_VERSION = 1


class RunFilesError(ValueError):
  """A work directory, or a file in it, that cannot be reported on."""


class Run(NamedTuple):
  """A search as its work directory tells it; it may not have ended."""

  # How the pages call it: the name of the directory.
  name: str
  path: pathlib.Path
  config: dict[str, Any]
  records: Sequence[metrics_log.Record]
  # None and empty before the search has ended.
  policy: policy_lib.Policy | None
  summary: Mapping[str, Any]
  # Of `pareto.json`: "cost", "unit", "points" and "uniform"; None if there is
  # no such file.
  pareto: Mapping[str, Any] | None

  @property
  def ended(self) -> bool:
    """Whether the search has ended."""
    return self.policy is not None

  @property
  def steps_done(self) -> int:
    """The last step that was recorded."""
    return max((record["step"] for record in self.records), default=0)

  def warnings(self) -> list[str]:
    """Say what is wrong with the search."""
    layers = self.policy.layers if self.policy else {}
    return run_warnings.find_warnings(
      self.records, self.summary, layers, self.config["search"]
    )


def read_run(path: str | os.PathLike[str]) -> Run:
  """Read a work directory.

  Args:
    path: the directory.

  Returns:
    The run. `summary.json` marks a search that has ended.

  Raises:
    RunFilesError: no such directory, or a damaged file in it, which is named.
    ValueError: likewise, from the reader of the file.
  """
  directory = pathlib.Path(path)
  if not directory.is_dir():
    raise RunFilesError(
      f"{directory} is no directory; expected the work directory of a search"
    )
  config = workdir.read_config(directory)
  _check_config(config, directory / workdir.CONFIG_NAME)
  summary: Mapping[str, Any] = {}
  policy = None
  if (directory / "summary.json").exists():
    summary = _read_object(directory / "summary.json")
    numbers = {k: v for k, v in summary.items() if k != "warnings"}
    _check_numbers(numbers, f"{directory / 'summary.json'}: ")
    policy = policy_lib.load(directory / "policy.json")
  records = []
  if (directory / "metrics.jsonl").exists():
    records = metrics_log.read_metrics(directory / "metrics.jsonl")
    for record in records:
      _check_numbers(
        record, f"{directory / 'metrics.jsonl'}: step {record['step']}: "
      )
  pareto = None
  if (directory / "pareto.json").exists():
    pareto = _read_object(directory / "pareto.json")
    _check_pareto(pareto, directory / "pareto.json")
  return Run(
    name=directory.resolve().name,
    path=directory,
    config=config,
    records=records,
    policy=policy,
    summary=summary,
    pareto=pareto,
  )


def _read_object(file: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
      raise ValueError("it holds no object")
  except (OSError, ValueError) as error:
    raise RunFilesError(
      f"{file} is damaged ({error}); remove it, and write it again"
    ) from error
  return found


def _is_number(value: Any) -> bool:
  return (
    isinstance(value, (int, float))
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def _check_numbers(values: Mapping[str, Any], where: str) -> None:
  for name, value in values.items():
    if value is not None and not _is_number(value):
      raise RunFilesError(
        f"{where}{name} is {value!r}; expected a finite number or null"
      )


def _check_config(config: Mapping[str, Any], file: pathlib.Path) -> None:
  """Check what a report reads; an older search may lack other keys."""
  flat = config_lib.flatten(config)
  accepted = {
    "model": (lambda value: isinstance(value, str), "text"),
    "budget": (lambda value: isinstance(value, str), "text"),
    "search.steps": (_is_number, "a number"),
    "search.preset": (
      lambda value: str(value) in sharpness.PRESETS,
      f"one of {sorted(sharpness.PRESETS)}",
    ),
    "search.sharpness.rho_max": (
      lambda value: _is_number(value) and value > 0,
      "a number above 0",
    ),
  }
  for name, (fits, expected) in accepted.items():
    if not fits(flat.get(name)):
      raise RunFilesError(
        f"{file}: {name} is {flat.get(name)!r}; expected {expected}"
      )


def _check_pareto(pareto: Mapping[str, Any], file: pathlib.Path) -> None:
  """Check what the curve is drawn from."""
  if pareto.get("schema_version") != PARETO_VERSION:
    raise RunFilesError(
      f"{file}: schema_version is {pareto.get('schema_version')!r}; this "
      f"version reads {PARETO_VERSION}"
    )
  for name in ("cost", "unit", "score"):
    if not isinstance(pareto.get(name), str):
      raise RunFilesError(
        f"{file}: {name} is {pareto.get(name)!r}; expected text"
      )
  for name in ("points", "uniform"):
    rows = pareto.get(name)
    if not isinstance(rows, list) or not all(
      isinstance(row, dict)
      and all(_is_number(row.get(key)) for key in ("cost", "score"))
      for row in rows
    ):
      raise RunFilesError(
        f"{file}: {name} is not a list of objects with the numbers cost and "
        "score"
      )
