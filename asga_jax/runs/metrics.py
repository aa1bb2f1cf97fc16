"""What a run tells while it runs: `metrics.jsonl`, and a progress display."""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import jax
import numpy as np
import tqdm

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


class MetricsBuffer:
  """Holds metrics of some steps on the device and fetches them together."""

  def __init__(self) -> None:
    self._steps: list[int] = []
    self._metrics: list[Mapping[str, Any]] = []

  def add(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Take the metrics of one step without waiting for them.

    Args:
      step: the step.
      metrics: scalars by name, on the device or not.
    """
    self._steps.append(step)
    self._metrics.append(metrics)

  def flush(self) -> list[Record]:
    """Fetch all in one transfer and empty the buffer.

    Returns:
      One record a step, ready for `MetricsWriter.write`.
    """
    fetched = jax.device_get(self._metrics)
    records = [
      {"step": step, **metrics}
      for step, metrics in zip(self._steps, fetched, strict=True)
    ]
    self._steps, self._metrics = [], []
    return records


def duration_in_words(seconds: float) -> str:
  """Say a duration in its two largest units, as '2 minutes 5 seconds'."""
  left = max(0, round(seconds))
  parts: list[str] = []
  for unit, size in (
    ("day", 86400),
    ("hour", 3600),
    ("minute", 60),
    ("second", 1),
  ):
    count, left = divmod(left, size)
    if count or (unit == "second" and not parts):
      parts.append(f"{count} {unit}{'' if count == 1 else 's'}")
    elif parts:
      break
  return " ".join(parts[:2])


class Progress:
  """Shows how far a run is: a bar on a terminal, plain lines in a log."""

  def __init__(
    self,
    total: int,
    *,
    initial: int = 0,
    label: str = "",
    interval: float = 10.0,
    stream: TextIO | None = None,
  ):
    """Start the display.

    Args:
      total: the steps of the whole run.
      initial: the steps done before, by a run that this one resumes.
      label: what the steps are of, e.g. 'search'.
      interval: seconds between two lines in a log.
      stream: where to show; standard error by default.
    """
    self._total, self._label, self._interval = total, label, interval
    self._stream = sys.stderr if stream is None else stream
    self._shown: dict[str, str] = {}
    # Timed from the end of the first step: that one compiles.
    self._started: tuple[int, float] | None = None
    self._spoke: tuple[int, float] = (initial, time.monotonic())
    self._bar = None
    if self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total,
        initial=initial,
        desc=label or None,
        file=self._stream,
        dynamic_ncols=True,
      )

  def update(
    self, step: int, figures: Mapping[str, float] | None = None
  ) -> None:
    """Tell how many steps are done.

    Args:
      step: the steps done so far, those before `initial` included.
      figures: a few numbers to show from now on, by name; those of the last
        call that gave any stay.
    """
    if figures:
      self._shown = {name: f"{value:.4g}" for name, value in figures.items()}
    if self._bar is not None:
      if figures:
        self._bar.set_postfix(self._shown, refresh=False)
      self._bar.update(step - self._bar.n)
      return
    now = time.monotonic()
    late = now - self._spoke[1] >= self._interval
    if self._started is None:
      self._started = step, now
      late = step > self._spoke[0]
    if late or (step >= self._total and step != self._spoke[0]):
      self._spoke = step, now
      self._stream.write(self._describe(step, now) + "\n")
      self._stream.flush()

  def _describe(self, step: int, now: float) -> str:
    parts = [f"{self._label} step {step} of {self._total}".strip()]
    first, start = self._started or (step, now)
    if step > first and now > start:
      rate = (step - first) / (now - start)
      parts.append(
        f"{rate:.3g} steps a second"
        if rate >= 1
        else f"{1 / rate:.3g} seconds a step"
      )
      if step < self._total:
        left = duration_in_words((self._total - step) / rate)
        parts.append(f"{left} left")
    parts += [f"{name} {value}" for name, value in self._shown.items()]
    return ", ".join(parts)

  def close(self) -> None:
    """End the display, leaving what it last showed."""
    if self._bar is not None:
      self._bar.close()

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
