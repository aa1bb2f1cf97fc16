"""What the work directory of a run holds, read and checked."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from asga_jax import policy as policy_lib
from asga_jax import sharpness
from asga_jax.allocation import curve as curve_lib
from asga_jax.report import curves
from asga_jax.report import run as run_lib
from asga_jax.runs import config_checks as config_lib
from asga_jax.runs import metrics as metrics_log
from asga_jax.runs import workdir

PARETO_VERSIONS = (1, curve_lib.SCHEMA_VERSION)
EVALUATIONS = "evaluation-*.json"
MEASURED, MEASURED_VERSION = "measured.json", 1
_INTERVALS = ("gain_interval", "agreement_gain_interval", "fall_interval")
# Of a summary.
_TEXTS = ("data", "split", "budget", "accuracy_budget", "fall_split")
_NO_NUMBERS = ("warnings", *_TEXTS, *_INTERVALS)


class RunFilesError(ValueError):
  """A work directory, or a file in it, that cannot be reported on."""


def radius_kind(settings: Mapping[str, Any]) -> str:
  """Tell how the radius adapts: 'fixed' where it does not.

  Args:
    settings: the group 'search' or 'finetune' of a configuration.
  """
  preset = sharpness.PRESETS[settings["preset"]]
  kind: str = settings["sharpness"].get("radius") or preset.get(
    "radius", "fixed"
  )
  return kind


def read_run(path: str | os.PathLike[str]) -> run_lib.Run:
  """Read a work directory.

  Args:
    path: the directory.

  Returns:
    The run. `summary.json` marks one that has ended.

  Raises:
    RunFilesError: no such directory, or a damaged file in it, which is named.
    ValueError: likewise, from the reader of the file.
  """
  directory = pathlib.Path(path)
  if not directory.is_dir():
    raise RunFilesError(
      f"{directory} is no directory; expected the work directory of a run"
    )
  config = workdir.read_config(directory)
  kind = "search"
  if workdir.is_quantization(config):
    kind = "quantization"
  elif "finetune" in config and "search" not in config:
    kind = "finetune"
  _check_config(config, kind, directory / workdir.CONFIG_NAME)
  summary: Mapping[str, Any] = {}
  ended = (directory / "summary.json").exists()
  if ended:
    summary = _read_object(directory / "summary.json")
    numbers = {k: v for k, v in summary.items() if k not in _NO_NUMBERS}
    _check_numbers(numbers, f"{directory / 'summary.json'}: ")
    for name in _INTERVALS:
      _check_interval(name, summary.get(name), directory / "summary.json")
  policy = None
  # A fine-tuning keeps its policy from the start; a float one has none.
  kept = (directory / "policy.json").exists()
  if kept if kind == "finetune" else ended:
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
    pareto = curve_lib.in_bytes(pareto)
  measured = None
  if (directory / MEASURED).exists():
    measured = _read_object(directory / MEASURED)
    _check_measured(measured, directory / MEASURED)
  return run_lib.Run(
    name=directory.resolve().name,
    path=directory,
    kind=kind,
    config=config_lib.flatten(config),
    radius=radius_kind(config[kind]) if kind in config else "fixed",
    records=curves.of_training(records) if kind == "finetune" else records,
    policy=policy,
    provenance=config_lib.flatten(policy.provenance) if policy else {},
    summary=summary,
    pareto=pareto,
    measured=measured,
    evaluations=[
      _read_evaluation(file) for file in sorted(directory.glob(EVALUATIONS))
    ],
    ended=ended,
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


def _check_interval(name: str, interval: Any, file: pathlib.Path) -> None:
  if interval is None:
    return
  if (
    not isinstance(interval, list)
    or len(interval) != 2
    or not all(map(_is_number, interval))
  ):
    raise RunFilesError(
      f"{file}: {name} is {interval!r}; expected two numbers or null"
    )


def _check_measured(measured: Mapping[str, Any], file: pathlib.Path) -> None:
  """Check what the picture of accuracies is drawn from."""
  rows = measured.get("policies")
  fits = {
    "schema_version": measured.get("schema_version") == MEASURED_VERSION,
    "cost": _is_text(measured.get("cost")),
    "unit": _is_text(measured.get("unit")),
    "float_accuracy": measured.get("float_accuracy") is None
    or _is_number(measured["float_accuracy"]),
    "policies": bool(rows)
    and isinstance(rows, list)
    and all(
      isinstance(row, dict)
      and _is_text(row.get("kind"))
      and all(_is_number(row.get(key)) for key in ("cost", "accuracy"))
      for row in rows
    ),
  }
  for name, good in fits.items():
    if not good:
      raise RunFilesError(
        f"{file}: {name} is {measured.get(name)!r}; remove the file and "
        "summary.json, and the command of the run makes both again"
      )


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _check_config(
  config: Mapping[str, Any], kind: str, file: pathlib.Path
) -> None:
  """Check what a report reads; an older run may lack other keys."""
  flat = config_lib.flatten(config)
  texts = {
    "search": ("budget",),
    "finetune": ("data.name", "weights.path"),
    "quantization": ("budget", "data.name", "weights.path"),
  }[kind]
  accepted: dict[str, Any] = dict.fromkeys(
    ("model", *texts), (_is_text, "text")
  )
  of_steps = {
    f"{kind}.steps": (_is_number, "a number"),
    f"{kind}.preset": (
      lambda value: str(value) in sharpness.PRESETS,
      f"one of {sorted(sharpness.PRESETS)}",
    ),
    f"{kind}.sharpness.rho_max": (
      lambda value: _is_number(value) and value > 0,
      "a number above 0",
    ),
  }
  if kind != "quantization":
    accepted |= of_steps
  for name, (fits, expected) in accepted.items():
    if not fits(flat.get(name)):
      raise RunFilesError(
        f"{file}: {name} is {flat.get(name)!r}; expected {expected}"
      )


def _check_pareto(pareto: Mapping[str, Any], file: pathlib.Path) -> None:
  """Check what the curve is drawn from."""
  if pareto.get("schema_version") not in PARETO_VERSIONS:
    raise RunFilesError(
      f"{file}: schema_version is {pareto.get('schema_version')!r}; this "
      f"version reads {PARETO_VERSIONS}"
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


def _read_evaluation(file: pathlib.Path) -> dict[str, Any]:
  """Read an evaluation, and check what is shown of it."""
  found = _read_object(file)
  names, networks = found.get("class_names"), found.get("networks")
  fits = {
    "data": (_is_text(found.get("data")), "text"),
    "split": (_is_text(found.get("split")), "text"),
    "images": (_is_number(found.get("images")), "a number"),
    "class_names": (
      bool(names) and isinstance(names, list) and all(map(_is_text, names)),
      "names",
    ),
    "networks": (bool(networks) and isinstance(networks, dict), "an object"),
  }
  for name, (good, expected) in fits.items():
    if not good:
      raise RunFilesError(
        f"{file}: {name} is {found.get(name)!r}; expected {expected}"
      )
  for label, figures in found["networks"].items():
    if not isinstance(figures, dict) or not all(
      isinstance(figures.get(name), (int, float))
      for name in ("top1", "top5", "loss")
    ):
      raise RunFilesError(
        f"{file}: network {label!r} lacks one of the numbers top1, top5, loss"
      )
    rows = figures.get("confusion")
    size = len(found["class_names"])
    if (
      not isinstance(rows, list)
      or len(rows) != size
      or not all(isinstance(row, list) and len(row) == size for row in rows)
      or not all(_is_number(count) for row in rows for count in row)
    ):
      raise RunFilesError(
        f"{file}: the confusion of network {label!r} is not a matrix of "
        f"{size} rows and columns of numbers"
      )
  return found
