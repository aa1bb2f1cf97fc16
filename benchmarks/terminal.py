"""Tables of the terminal."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import tabulate


def table(rows: Iterable[Any], headers: Sequence[str] = "keys") -> str:
  """Lay out rows: the first column to the left, all others to the right."""
  return tabulate.tabulate(
    rows,
    headers,
    tablefmt="plain",
    disable_numparse=True,
    stralign="right",
    colalign=("left",),
  )


def spread(title: str, values: list[float], sign: str = "") -> dict[str, str]:
  """Make the cells of a mean with its standard deviation, and of both ends."""
  mean, least, most = (
    f"{f(values):{sign}.2f}" for f in (statistics.mean, min, max)
  )
  deviation = statistics.stdev(values) if len(values) > 1 else 0.0
  return {title: f"{mean} ± {deviation:.2f}", "min": least, "max": most}
