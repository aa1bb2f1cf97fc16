"""Small charts as SVG inside HTML: curves, and bars up and down."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asga_jax.report import markup

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 8, 34
# A name below a bar is cut to this many characters, from its front.
_NAME = 22


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


class Bar(NamedTuple):
  """One bar: how high it is, what stands at its end, what pointing at it says.

  A hollow one is drawn without its fill.
  """

  value: float
  text: str
  hint: str
  hollow: bool = False


def ticks(low: float, high: float, most: int = 5) -> list[float]:
  """Choose round numbers that span a range.

  Args:
    low: the lowest value, finite.
    high: the highest, finite.
    most: how many steps the range has at most.

  Returns:
    Multiples of 1, 2 or 5 times a power of ten, from one at or below `low` to
    one at or above `high`; two or more.
  """
  # A running mean of equal values differs from them by rounding alone.
  if high - low <= 1e-9 * max(abs(low), abs(high)):
    margin = abs(low) / 2 or 0.5
    low, high = low - margin, high + margin
  rough = (high - low) / most
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  count = max(last - first, 1)
  return [float(f"{(first + n) * step:.12g}") for n in range(count + 1)]


def number(value: float) -> str:
  """Write a number of an axis in few characters."""
  for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
    if abs(value) >= size:
      return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
  return f"{value:.4g}"


def _color(slot: int) -> str:
  return f"var(--c{slot % markup.COLORS})"


def _style(series: Series) -> str:
  again = series.slot // markup.COLORS
  dashes = f";stroke-dasharray:{2 + 2 * again} 3" if again else ""
  return f'style="stroke:{_color(series.slot)}{dashes}"'


def _legend(series: Sequence[Series]) -> str:
  shown = [s for s in series if not s.faint]
  if len(shown) < 2:
    return ""
  items = "".join(
    f'<span><i class="{"" if s.kind == "points" else "full"}" '
    f'style="color:{_color(s.slot)}"></i>{markup.escape(s.label)}</span> '
    for s in shown
  )
  return f'<figcaption class="legend">{items}</figcaption>'


def line_chart(
  title: str,
  series: Sequence[Series],
  *,
  x_label: str = "step",
  limit: float | None = None,
) -> str:
  """Draw curves over a common axis.

  Args:
    title: what stands over the chart.
    series: what to draw; what is not finite is left out.
    x_label: the name of the horizontal axis.
    limit: a value to mark by a dashed line.

  Returns:
    A <figure>; empty text if there is nothing to draw.
  """
  points = [_finite(s) for s in series]
  if not any(len(x) for x, _ in points):
    return ""
  all_x = np.concatenate([x for x, _ in points])
  all_y = np.concatenate([y for _, y in points])
  lowest, highest = float(all_y.min()), float(all_y.max())
  if limit is not None:
    lowest, highest = min(lowest, limit), max(highest, limit)
  y_ticks = ticks(lowest, highest)
  # Steps are whole numbers, and the axis ends where they end.
  left, right = float(all_x.min()), float(all_x.max())
  if left == right:
    left, right = left - 0.5, right + 0.5
  x_ticks = [t for t in ticks(left, right) if left <= t <= right]

  def at_x(value: float) -> float:
    share = (value - left) / (right - left)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

  def at_y(value: float) -> float:
    share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

  parts = []
  for tick in y_ticks:
    y = at_y(tick)
    parts.append(
      f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}"'
      f' y2="{y:.1f}"/><text x="{_LEFT - 5}" y="{y + 4:.1f}"'
      f' text-anchor="end">{number(tick)}</text>'
    )
  parts += [
    f'<text x="{at_x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 14}"'
    f' text-anchor="middle">{number(tick)}</text>'
    for tick in x_ticks
  ]
  parts.append(
    f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}"'
    f' text-anchor="middle">{markup.escape(x_label)}</text>'
  )
  if limit is not None:
    y = at_y(limit)
    parts.append(
      f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}"'
      f' y2="{y:.1f}"/>'
    )
  for one in series:
    parts.append(_drawn(one, at_x, at_y))
  return (
    f"<figure><h3>{markup.escape(title)}</h3>"
    f'<svg class="fluid" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
    f' aria-label="{markup.escape(title)}">{"".join(parts)}</svg>'
    f"{_legend(series)}</figure>"
  )


def _finite(series: Series) -> tuple[np.ndarray, np.ndarray]:
  x, y = np.asarray(series.x, float), np.asarray(series.y, float)
  known = np.isfinite(x) & np.isfinite(y)
  return x[known], y[known]


def _drawn(series: Series, at_x, at_y) -> str:
  """Draw one series: a path with gaps, or circles."""
  pairs = list(zip(np.asarray(series.x), np.asarray(series.y), strict=True))
  circles = series.kind == "points" or len(pairs) == 1
  if circles:
    return "".join(
      f'<circle class="curve" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3.5"'
      f" {_style(series)}><title>{markup.escape(series.label)}:"
      f" {number(x)}, {number(y)}</title></circle>"
      for x, y in pairs
      if math.isfinite(y)
    )
  path, pen_down = [], False
  for x, y in pairs:
    if not math.isfinite(y):
      pen_down = False
      continue
    if pen_down and series.kind == "steps":
      path.append(f"H{at_x(x):.1f}")
    path.append(f"{'L' if pen_down else 'M'}{at_x(x):.1f} {at_y(y):.1f}")
    pen_down = True
  faint = " faint" if series.faint else ""
  return f'<path class="curve{faint}" {_style(series)} d="{"".join(path)}"/>'


def mirrored_bars(
  title: str,
  names: Sequence[str],
  upper: Sequence[Bar],
  lower: Sequence[Bar],
  labels: tuple[str, str],
) -> str:
  """Draw two bars for each name, one up and one down, on one scale.

  Its width grows with the number of names; it scrolls in its own box.

  Args:
    title: what stands over the chart.
    names: below the bars, in order.
    upper: the bars that point up, one a name.
    lower: the bars that point down, one a name.
    labels: what the two directions are.

  Returns:
    A <figure>.
  """
  step = min(max(320 / len(names), 22), 40)
  tall, margin = 70, 14
  middle = tall + margin
  longest = min(max(map(len, names)), _NAME)
  bottom = middle + tall + margin
  height = bottom + 6.2 * longest + 6
  width = step * len(names) + 8
  parts = []
  most = max(max(bar.value for bar in (*upper, *lower)), 1e-12)
  for slot, bars, sign in ((0, upper, -1), (1, lower, 1)):
    for index, bar in enumerate(bars):
      size = tall * bar.value / most
      top = middle - size if sign < 0 else middle
      end = middle + sign * (size + 4) + (8 if sign > 0 else 0)
      left = 4 + index * step + 0.14 * step
      fill = 'class="fixed"' if bar.hollow else f'fill="{_color(slot)}"'
      parts.append(
        f"<g><title>{markup.escape(bar.hint)}</title>"
        f'<rect {fill} x="{left:.1f}" y="{top:.1f}" width="{0.72 * step:.1f}"'
        f' height="{size:.1f}" stroke="{_color(slot)}"/>'
        f'<text x="{left + 0.36 * step:.1f}" y="{end:.1f}"'
        f' text-anchor="middle">{markup.escape(bar.text)}</text></g>'
      )
  for index, name in enumerate(names):
    shown = name if len(name) <= _NAME else "…" + name[1 - _NAME :]
    x = 4 + (index + 0.5) * step + 4
    parts.append(
      f'<text transform="translate({x:.1f} {bottom + 4}) rotate(-90)"'
      f' text-anchor="end">{markup.escape(shown)}</text>'
    )
  parts.append(
    f'<line class="axis" x1="0" x2="{width:.0f}" y1="{middle}" y2="{middle}"/>'
  )
  colors = [Series(label, (), (), slot) for slot, label in enumerate(labels)]
  return (
    f"<figure><h3>{markup.escape(title)}</h3>{_legend(colors)}"
    f'<div class="wide" tabindex="0"><svg width="{width:.0f}"'
    f' height="{height:.0f}" role="img" aria-label="{markup.escape(title)}">'
    f"{''.join(parts)}</svg></div></figure>"
  )
