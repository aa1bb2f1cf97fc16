"""Picture of a Pareto curve, with the uniform policies beside it."""

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker as mpl_ticker

from asga_jax.report import plots

_CURVE, _UNIFORM, _CHOSEN = "#1f77b4", "#ff7f0e", "#c0392b"
# Unit of the file -> units of the axis, and how many of the first each is.
_AXES = {
  "BOPs": (("G BOPs", 1e9), ("M BOPs", 1e6), ("BOPs", 1.0)),
  "bits": (("MB", 8e6), ("KB", 8e3), ("B", 8.0)),
}
# A ratio of costs from which the axis is logarithmic.
_WIDE = 3


class DrawnPoint(Protocol):
  """A policy's cost and score."""

  @property
  def cost(self) -> float: ...  # noqa: D102
  @property
  def score(self) -> float: ...  # noqa: D102


class DrawnUniform(DrawnPoint, Protocol):
  """A uniform policy."""

  @property
  def bits(self) -> int: ...  # noqa: D102


def plot_pareto(
  points: Sequence[DrawnPoint],
  path: str | os.PathLike[str],
  *,
  model: str,
  cost: str,
  unit: str,
  score: str,
  uniform: Sequence[DrawnUniform] = (),
  chosen: DrawnPoint | None = None,
  budget: str = "",
  complete: bool = False,
) -> None:
  """Draw the best score at every cost.

  Args:
    points: of the curve, by rising cost.
    path: the PNG to write; it is replaced whole or not at all.
    model: the network's name, for the title.
    cost: the cost's name.
    unit: of the cost: BOPs and bits are drawn in G BOPs and MB, or less.
    score: the score's name.
    uniform: policies of uniform bits.
    chosen: the policy of the search's own budget.
    budget: what all policies meet besides, for the title.
    complete: whether no points lie between these: the curve is then drawn as
      the stairs that it is.

  Raises:
    ValueError: if there are no points.
  """
  if not points:
    raise ValueError("points is empty; there is no curve to draw")
  units = _AXES.get(unit, ((unit, 1.0),))
  largest = points[-1].cost
  axis_unit, scale = next((x for x in units if 10 * largest >= x[1]), units[-1])
  figure = mpl_figure.Figure(figsize=(7, 4.4), dpi=120, layout="constrained")
  axes = figure.subplots()
  costs = np.array([point.cost for point in points]) / scale
  scores = np.array([point.score for point in points])
  axes.plot(
    costs,
    scores,
    color=_CURVE,
    marker=".",
    linewidth=1.4,
    drawstyle="steps-post" if complete else "default",
    label="best at each cost",
  )
  if uniform:
    axes.plot(
      [even.cost / scale for even in uniform],
      [even.score for even in uniform],
      "s",
      color=_UNIFORM,
      markersize=6,
      label="uniform bits",
    )
    for even in uniform:
      axes.annotate(
        f"{even.bits}",
        (even.cost / scale, even.score),
        textcoords="offset points",
        xytext=(8, -4),
        fontsize=8,
        color=_UNIFORM,
      )
  if chosen is not None:
    axes.plot(
      chosen.cost / scale,
      chosen.score,
      "*",
      color=_CHOSEN,
      markersize=13,
      label="the search's policy",
      zorder=3,
    )
  drawn = [p.cost / scale for p in (*points, *uniform)]
  if min(drawn) > 0 and max(drawn) > _WIDE * min(drawn):
    _log_axis(axes)
  axes.set_xlabel(f"{cost} ({axis_unit})" if axis_unit else cost)
  axes.set_ylabel(f"{score.replace('_', ' ')} score (larger is better)")
  axes.grid(alpha=0.3)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(loc="lower right", frameon=False)
  title = f"{model}: {len(points)} optimal policies of one search"
  figure.suptitle(f"{title}, {budget}" if budget else title, fontsize=11)
  plots.save_png(figure, path)


def _log_axis(axes: mpl_axes.Axes) -> None:
  """Make the axis of costs logarithmic, with plain numbers on it."""
  axes.set_xscale("log")
  axes.xaxis.set_major_locator(
    mpl_ticker.LogLocator(base=10, subs=(1, 2, 5), numticks=12)
  )
  axes.xaxis.set_major_formatter(mpl_ticker.FormatStrFormatter("%g"))
  axes.xaxis.set_minor_formatter(mpl_ticker.NullFormatter())
