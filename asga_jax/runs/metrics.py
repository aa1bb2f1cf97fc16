"""What a run tells while it runs: `metrics.jsonl`."""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from asga_jax import files

Record = dict[str, Any]


class MetricsError(ValueError):
  """A metrics file that is damaged before its last line."""


def _to_json(value: Any) -> Any:
  """Turn scalars of NumPy and JAX into Python's, non-finite ones to None."""
  if isinstance(value, (str, bool, int)) or value is None:
    return value
  number = np.asarray(value).item()
  if isinstance(number, float) and not math.isfinite(number):
    return None
  return number


def read_metrics(path: str | os.PathLike[str]) -> list[Record]:
  """Read the records of a metrics file, in the order of the file.

  Args:
    path: a file that `MetricsWriter` wrote. A last line that a killed run left
      half-written is passed over.

  Returns:
    One dict a line, with "step"; None where a value was not finite.

  Raises:
    FileNotFoundError: if there is no such file.
    MetricsError: if another line than the last is damaged; it names the line.
  """
  text = pathlib.Path(path).read_bytes().decode(errors="replace")
  lines = text.split("\n")
  records = []
  # A whole file ends in a line break, so the last piece is empty or half a
  # line: half a line can look whole, as 1 does for 12.
  for number, line in enumerate(lines[:-1], 1):
    try:
      record = json.loads(line)
      if not isinstance(record, dict) or not isinstance(record["step"], int):
        raise ValueError("no step")
    except (ValueError, KeyError) as error:
      raise MetricsError(
        f"line {number} of {path} is no record: {line[:60]!r}; mend or remove "
        "the file"
      ) from error
    records.append(record)
  return records


class MetricsWriter:
  """Appends records to a metrics file, each step exactly once.

  A run that writes its records before it saves the checkpoint of the same step,
  and opens the file with the step that it restored, leaves the file of a run
  that was never interrupted.
  """

  def __init__(
    self, path: str | os.PathLike[str], *, resume_step: int | None = None
  ):
    """Open the file, dropping what will be written again.

    Args:
      path: the file; its directory must exist.
      resume_step: the step restored: records after it are dropped. None starts
        the run from nothing, so that no record of an earlier attempt is kept.

    Raises:
      MetricsError: if the file is damaged before its last line.
    """
    self._path = pathlib.Path(path)
    kept: list[Record] = []
    if resume_step is not None and self._path.exists():
      kept = [r for r in read_metrics(path) if r["step"] <= resume_step]
    files.write_text_atomic(path, "".join(map(_line, kept)))
    self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115

  def write(self, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records; when it returns they survive the end of the process.

    Args:
      records: dicts of scalars, each with an integer "step"; what is not finite
        is written as null.

    Raises:
      ValueError: if a record has no "step".
    """
    self._file.write("".join(map(_line, records)))
    self._file.flush()

  def close(self) -> None:
    """Close the file."""
    self._file.close()

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def _line(record: Mapping[str, Any]) -> str:
  if "step" not in record:
    raise ValueError(f"a record has no step: {dict(record)!r}")
  ordered = {"step": int(record["step"]), **record}
  values = {key: _to_json(value) for key, value in ordered.items()}
  return json.dumps(values, allow_nan=False) + "\n"
