"""Picture of measured accuracy against cost: policies, uniform bits, float."""

import os
from collections.abc import Mapping
from typing import Any

from matplotlib import figure as mpl_figure

from asga_jax.report import pareto_plot, plots

_KINDS = (
  ("searched", "searched bits", "o-", "#1f77b4"),
  ("uniform", "uniform bits", "s--", "#ff7f0e"),
)


def plot_measured(
  measured: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
  """Draw what was measured after a search.

  Args:
    measured: of `measured.json`; the first of its policies is the run's own.
    path: the PNG to write; it is replaced whole or not at all.
  """
  rows = measured["policies"]
  largest = max(row["cost"] for row in rows)
  unit, scale = pareto_plot.axis_unit(measured["unit"], largest)
  figure = mpl_figure.Figure(figsize=(7, 4.4), dpi=120, layout="constrained")
  axes = figure.subplots()
  for kind, label, style, color in _KINDS:
    points = sorted(
      (row["cost"] / scale, 100 * row["accuracy"])
      for row in rows
      if row["kind"] == kind
    )
    if points:
      costs, shares = zip(*points, strict=True)
      axes.plot(costs, shares, style, color=color, label=label, linewidth=1.4)
  axes.plot(
    rows[0]["cost"] / scale,
    100 * rows[0]["accuracy"],
    "*",
    color="#c0392b",
    markersize=13,
    label=f"the policy, {measured['budget']}",
    zorder=3,
  )
  if measured["float_accuracy"] is not None:
    axes.axhline(
      100 * measured["float_accuracy"],
      color="#555555",
      linestyle=":",
      label="float",
    )
  cost = measured["cost"]
  axes.set_xlabel(f"{cost} ({unit})" if unit else cost)
  what = measured.get("what", "accuracy")
  axes.set_ylabel(f"{what} (%) on {measured['images']} images")
  axes.grid(alpha=0.3)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(loc="lower right", frameon=False)
  figure.suptitle(f"{measured['model']}: {what} at each cost", fontsize=11)
  plots.save_png(figure, path)
