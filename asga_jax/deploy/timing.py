"""Programs timed in turns, so that they share what slows the machine down."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def times_ms(
  runs: Sequence[Callable[[], Any]],
  repeats: int,
  *,
  warm_up: int,
  before: int = 0,
) -> list[list[float]]:
  """Run programs in turns and give the times of each, in ms, by round.

  Args:
    runs: each runs one program to its end.
    repeats: how many rounds count, at least 1.
    warm_up: how many rounds come before and do not.
    before: how often a program runs untimed before each time that it is timed;
      the first run of a turn finds the caches as another program left them.
  """
  rounds: list[list[float]] = []
  for _ in range(warm_up + repeats):
    rounds.append([])
    for run in runs:
      for _ in range(before):
        run()
      rounds[-1].append(_run_ms(run))
  return [list(times) for times in zip(*rounds[warm_up:], strict=True)]


def median_ms(
  runs: Sequence[Callable[[], Any]],
  repeats: int,
  *,
  warm_up: int,
  before: int = 0,
) -> list[float]:
  """Give the median time of each program, in ms; see `times_ms`."""
  found = times_ms(runs, repeats, warm_up=warm_up, before=before)
  return [statistics.median(times) for times in found]


def _run_ms(run: Callable[[], Any]) -> float:
  start = time.perf_counter()
  run()
  return 1e3 * (time.perf_counter() - start)
