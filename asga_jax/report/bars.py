"""Figures of a page: two bars for each name, one up and one down."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib import patches as mpl_patches

from asga_jax.report import figures, svg

# A name below a bar is cut to this many characters, from its front.
_NAME = 22


class Bar(NamedTuple):
  """One bar: how high it is, what stands at its end, what pointing at it says.

  A hollow one is drawn without its fill.
  """

  value: float
  text: str
  hint: str
  hollow: bool = False


def mirrored_bars(
  title: str,
  names: Sequence[str],
  upper: Sequence[Bar],
  lower: Sequence[Bar],
  labels: tuple[str, str],
) -> figures.Chart:
  """Draw two bars for each name, one up and one down, on one scale.

  Its width grows with the number of names.

  Args:
    title: what stands over the chart.
    names: below the bars, in order.
    upper: the bars that point up, one a name.
    lower: the bars that point down, one a name.
    labels: what the two directions are.
  """
  step = min(max(320 / len(names), 22), 40)
  tall, margin = 70, 14
  middle = tall + margin
  bottom = middle + tall + margin
  height = bottom + 6.2 * min(max(map(len, names)), _NAME) + 10
  width = math.ceil(step * len(names) + 8)
  most = max(max(bar.value for bar in (*upper, *lower)), 1e-12)
  hints: dict[str, str] = {}
  with svg.canvas(width, height) as figure:
    axes = svg.whole_axes(figure)
    axes.plot((0, width), (middle, middle), color=svg.ink("rule"), linewidth=1)
    for slot, bars, sign in ((0, upper, -1), (1, lower, 1)):
      color = svg.ink(slot)
      for index, bar in enumerate(bars):
        size = sign * tall * bar.value / most
        left = 4 + (index + 0.14) * step
        hints[f"bar{len(hints)}"] = bar.hint
        axes.add_artist(
          mpl_patches.Rectangle(
            (left, middle),
            0.72 * step,
            size,
            facecolor="none" if bar.hollow else color,
            edgecolor=color,
            gid=f"bar{len(hints) - 1}",
          )
        )
        end = middle + size + (12 if sign > 0 else -4)
        center = left + 0.36 * step
        axes.text(center, end, svg.plain(bar.text), ha="center")
    for index, name in enumerate(names):
      shown = name if len(name) <= _NAME else "…" + name[1 - _NAME :]
      x = 4 + (index + 0.5) * step + 4
      svg.upright(axes, x, bottom + 4, shown)
    drawn = svg.inline(figure, title, hints=hints, fluid=False)
  keys = [figures.Key(label, slot) for slot, label in enumerate(labels)]
  return figures.Chart(title, drawn, keys, wide=True)
