"""Figures of a page: curves over a common axis."""

from collections.abc import Sequence
from typing import NamedTuple

import markupsafe
import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import ticker as mpl_ticker

from asga_jax.report import svg

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 8, 34


class Series(NamedTuple):
  """One curve, or a set of points."""

  label: str
  x: Sequence[float] | np.ndarray
  # NaN is a gap.
  y: Sequence[float] | np.ndarray
  # Which of the page's colours; beyond the last they begin again, dashed.
  slot: int = 0
  # 'line', 'steps' (flat up to the next point) or 'points'.
  kind: str = "line"
  # Drawn in the background and left out of the legend.
  faint: bool = False


class Key(NamedTuple):
  """One entry of a legend."""

  label: str
  color: int
  hollow: bool = False


class Chart(NamedTuple):
  """A figure with what stands around it."""

  title: str
  svg: markupsafe.Markup
  # Empty where there is one curve alone.
  legend: Sequence[Key] = ()
  # Whether it may be wider than the page, and scrolls.
  wide: bool = False


def number(value: float) -> str:
  """Write a number of an axis or a headline in few characters."""
  for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
    if abs(value) >= size:
      return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
  return f"{value:.4g}"


def line_chart(
  title: str,
  series: Sequence[Series],
  *,
  x_label: str = "step",
  limit: float | None = None,
) -> Chart | None:
  """Draw curves over a common axis.

  Args:
    title: what stands over the chart.
    series: what to draw; what is not finite is left out.
    x_label: the name of the horizontal axis.
    limit: a value to mark by a dashed line.

  Returns:
    The chart; None if there is nothing to draw.
  """
  known = [_finite(one) for one in series]
  if not any(len(x) for x, _ in known):
    return None
  x = np.concatenate([x for x, _ in known])
  y = np.concatenate([y for _, y in known])
  hints: dict[str, str] = {}
  with svg.canvas(_WIDTH, _HEIGHT) as figure:
    axes = svg.axes_within(figure, (_LEFT, _BOTTOM, _RIGHT, _TOP))
    for one in series:
      _draw_series(axes, one, hints)
    if limit is not None:
      y = np.append(y, limit)
      color = svg.ink("limit")
      axes.axhline(limit, color=color, linewidth=1, linestyle=(0, (4, 3)))
    _scale(axes, x, y)
    figure.text(
      (_LEFT + _WIDTH - _RIGHT) / 2 / _WIDTH,
      4 / _HEIGHT,
      svg.plain(x_label),
      ha="center",
    )
    drawn = svg.inline(figure, title, hints=hints)
  keys = [
    Key(one.label, one.slot % svg.COLORS, one.kind == "points")
    for one in series
    if not one.faint
  ]
  return Chart(title, drawn, keys if len(keys) > 1 else ())


def _scale(axes: mpl_axes.Axes, x: np.ndarray, y: np.ndarray) -> None:
  """Let the axes span the values, and write round numbers beside them."""
  low, high = float(y.min()), float(y.max())
  # A running mean of equal values differs from them by rounding alone.
  if high - low <= 1e-9 * max(abs(low), abs(high)):
    margin = abs(low) / 2 or 0.5
    low, high = low - margin, high + margin
  # Steps are whole numbers, and the axis ends where they end.
  left, right = float(x.min()), float(x.max())
  if left == right:
    left, right = left - 0.5, right + 0.5
  rows, columns = (
    mpl_ticker.MaxNLocator(5, steps=[1, 2, 5, 10]) for _ in range(2)
  )
  axes.set(xlim=(left, right), ylim=rows.view_limits(low, high))
  axes.xaxis.set_major_locator(columns)
  axes.yaxis.set_major_locator(rows)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(lambda value, _: number(value))
  axes.grid(axis="y", color=svg.ink("rule"), linewidth=1)
  axes.set_axisbelow(True)


def _finite(series: Series) -> tuple[np.ndarray, np.ndarray]:
  x, y = np.asarray(series.x, float), np.asarray(series.y, float)
  known = np.isfinite(x) & np.isfinite(y)
  return x[known], y[known]


def _draw_series(
  axes: mpl_axes.Axes, series: Series, hints: dict[str, str]
) -> None:
  """Draw one series: a line with gaps, or circles with what they are."""
  color = svg.ink(series.slot)
  if series.kind == "points" or len(series.y) == 1:
    for x, y in zip(*_finite(series), strict=True):
      name = f"point{len(hints)}"
      hints[name] = f"{series.label}: {number(x)}, {number(y)}"
      axes.plot(
        x,
        y,
        "o",
        markersize=7,
        markerfacecolor="none",
        markeredgecolor=color,
        markeredgewidth=1.7,
        gid=name,
      )
    return
  y = np.asarray(series.y, float)
  again = series.slot // svg.COLORS
  axes.plot(
    np.asarray(series.x, float),
    np.where(np.isfinite(y), y, np.nan),
    color=color,
    linewidth=1 if series.faint else 1.7,
    alpha=0.3 if series.faint else 1.0,
    drawstyle="steps-post" if series.kind == "steps" else "default",
    linestyle=(0, (2 + 2 * again, 3)) if again else "-",
  )
