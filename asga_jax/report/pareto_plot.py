"""Picture of a Pareto curve, with the uniform policies beside it."""

import os
import pathlib

import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker as mpl_ticker

from asga_jax.allocation import curve as pareto_curve
from asga_jax.report import plots

_CURVE, _UNIFORM, _CHOSEN = "#1f77b4", "#ff7f0e", "#c0392b"
# Unit of the file -> units of the axis, and how many of the first each is.
_AXES = {
  "BOPs": (("G BOPs", 1e9), ("M BOPs", 1e6), ("BOPs", 1.0)),
  "bytes": (("MB", 1e6), ("KB", 1e3), ("B", 1.0)),
}
# A ratio of costs from which the axis is logarithmic.
_WIDE = 3


def write(
  curve: pareto_curve.ParetoCurve, path: str | os.PathLike[str]
) -> pathlib.Path:
  """Write a curve as JSON, and beside it the picture.

  Args:
    curve: of a search.
    path: of the JSON file; the picture has the same name with .png.

  Returns:
    The path of the picture.
  """
  path = pathlib.Path(path)
  pareto_curve.save(curve, path)
  picture = path.with_name(path.name.removesuffix(".json") + ".png")
  plot_pareto(curve, picture)
  return picture


def plot_pareto(
  curve: pareto_curve.ParetoCurve, path: str | os.PathLike[str]
) -> None:
  """Draw the best score at every cost, and the uniform policies.

  Costs in BOPs and bytes are drawn in G BOPs and MB, or less. A curve that has
  every point that there is is drawn as the stairs that it is.

  Args:
    curve: of a search.
    path: the PNG to write; it is replaced whole or not at all.
  """
  points, uniform = curve.points, curve.uniform
  unit, scale = axis_unit(curve.unit, points[-1].cost)
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
    drawstyle="steps-post" if curve.complete else "default",
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
  if curve.chosen is not None:
    axes.plot(
      curve.chosen.cost / scale,
      curve.chosen.score,
      "*",
      color=_CHOSEN,
      markersize=13,
      label="the search's policy",
      zorder=3,
    )
  drawn = [*costs, *(even.cost / scale for even in uniform)]
  if min(drawn) > 0 and max(drawn) > _WIDE * min(drawn):
    _log_axis(axes)
  axes.set_xlabel(f"{curve.cost} ({unit})" if unit else curve.cost)
  axes.set_ylabel(f"{curve.score.replace('_', ' ')} score (larger is better)")
  axes.grid(alpha=0.3)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(loc="lower right", frameon=False)
  title = f"{curve.model}: {len(points)} optimal policies of one search"
  figure.suptitle(
    f"{title}, {curve.budget}" if curve.budget else title, fontsize=11
  )
  plots.save_png(figure, path)


def axis_unit(unit: str, largest: float) -> tuple[str, float]:
  """Choose the unit of an axis of costs.

  Args:
    unit: of the costs.
    largest: of them.

  Returns:
    The unit, and how many of the costs' own it is.
  """
  units = _AXES.get(unit, ((unit, 1.0),))
  return next((x for x in units if 10 * largest >= x[1]), units[-1])


def _log_axis(axes: mpl_axes.Axes) -> None:
  """Make the axis of costs logarithmic, with plain numbers on it."""
  axes.set_xscale("log")
  axes.xaxis.set_major_locator(
    mpl_ticker.LogLocator(base=10, subs=(1, 2, 5), numticks=12)
  )
  axes.xaxis.set_major_formatter(mpl_ticker.FormatStrFormatter("%g"))
  axes.xaxis.set_minor_formatter(mpl_ticker.NullFormatter())
