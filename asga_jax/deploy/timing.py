"""Programs timed in turns, so that they share what slows the machine down."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def median_ms(
  runs: Sequence[Callable[[], Any]], repeats: int, *, warm_up: int
) -> list[float]:
  """Run programs in turns and give the median time of each, in ms.

  Args:
    runs: each runs one program to its end.
    repeats: how many rounds count, at least 1.
    warm_up: how many rounds come before and do not.
  """
  rounds = [[_run_ms(run) for run in runs] for _ in range(warm_up + repeats)]
  return [
    statistics.median(times) for times in zip(*rounds[warm_up:], strict=True)
  ]


def _run_ms(run: Callable[[], Any]) -> float:
  start = time.perf_counter()
  run()
  return 1e3 * (time.perf_counter() - start)
