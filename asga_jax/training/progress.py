"""How far a loop is: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TextIO, TypeVar

import tqdm

Item = TypeVar("Item")


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


def is_watched(stream: TextIO) -> bool:
  """Say whether somebody looks at a stream: a terminal, or a notebook."""
  return stream.isatty() or "ipykernel" in sys.modules


class Progress:
  """Shows how far a run is: a bar on a terminal, plain lines in a log."""

  def __init__(
    self,
    total: int,
    *,
    initial: int = 0,
    label: str = "",
    interval: float = 10.0,
    lines: bool = True,
    stream: TextIO | None = None,
  ):
    """Start the display.

    Args:
      total: the steps of the whole run.
      initial: the steps done before, by a run that this one resumes.
      label: what the steps are of, e.g. 'search'.
      interval: seconds between two lines in a log.
      lines: whether to write lines where there is neither a terminal nor a
        notebook.
      stream: where to show; standard error by default.
    """
    self._total, self._label, self._interval = total, label, interval
    self._stream = sys.stderr if stream is None else stream
    self._shown: dict[str, str] = {}
    # Timed from the end of the first step: that one compiles.
    self._started: tuple[int, float] | None = None
    self._spoke: tuple[int, float] = (initial, time.monotonic())
    self._bar = None
    self._silent = not lines
    if is_watched(self._stream):
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
    if self._silent:
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


def watched(items: Sequence[Item], *, label: str) -> Iterator[Item]:
  """Go through a sequence and show how far it is.

  Args:
    items: each of about the same work.
    label: what they are of, e.g. 'latency'.

  Yields:
    The items.
  """
  with Progress(len(items), label=label) as display:
    for done, item in enumerate(items, 1):
      yield item
      display.update(done)
