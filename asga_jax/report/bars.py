"""Figures of a page: two bars for each name, one up and one down."""

import math
from collections.abc import Sequence
from typing import NamedTuple

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
  shown = [
    svg.plain(name if len(name) <= _NAME else "…" + name[1 - _NAME :])
    for name in names
  ]
  below = 6.2 * max(map(len, shown)) + 20
  width = min(max(320 / len(names), 22), 40) * len(names)
  most = max(max(bar.value for bar in (*upper, *lower)), 1e-12)
  hints: dict[str, str] = {}
  with svg.canvas(math.ceil(width), 160 + below) as figure:
    axes = svg.axes_within(figure, (0, below, 0, 14))
    for slot, bars, sign in ((0, upper, 1), (1, lower, -1)):
      color = svg.ink(slot)
      drawn = axes.bar(
        range(len(names)),
        [sign * bar.value for bar in bars],
        width=0.72,
        color=["none" if bar.hollow else color for bar in bars],
        edgecolor=color,
      )
      for shape, bar in zip(drawn, bars, strict=True):
        shape.set_gid(f"bar{len(hints)}")
        hints[shape.get_gid()] = bar.hint
      axes.bar_label(drawn, [svg.plain(bar.text) for bar in bars], padding=3)
    axes.axhline(0, color=svg.ink("rule"), linewidth=1)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(-most, most), yticks=[])
    svg.stand(axes, shown, pad=18)
    made = svg.inline(figure, title, hints=hints, fluid=False)
  keys = [figures.Key(label, slot) for slot, label in enumerate(labels)]
  return figures.Chart(title, made, keys, wide=True)
