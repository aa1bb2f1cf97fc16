"""What searches did step by step: gap, cosine and loss of each method."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import figure as mpl_figure

from asga_jax.evidence import cells, methods
from asga_jax.evidence import grid as grid_lib
from asga_jax.report import plots

# Method -> figure -> shape (seeds, steps).
Curves = Mapping[str, Mapping[str, np.ndarray]]
_SHOWN = {
  "loss": "divergence from float, nats",
  "gap": "surrogate gap, nats",
  "cosine": "cosine of both gradients",
}
_LAST = 0.25  # of the steps, for means


def read(
  grid: grid_lib.Grid, store: cells.Store, network: str, proxy: str
) -> dict[str, dict[str, np.ndarray]]:
  """Read the curves of all searches of a network on a proxy.

  Returns:
    Method -> figure -> shape (seeds, steps).
  """
  found: dict[str, dict[str, np.ndarray]] = {}
  for name in grid.config["methods"]:
    method = methods.find(name)
    if method.kind != "search" or method.choice:
      continue
    given = []
    for seed in range(grid.config["seeds"]):
      row = grid_lib.Row(network, proxy, name, "", seed)
      cell = store.get(grid.score_spec(row, method))
      if cell is not None:
        given.append(cell["curves"])
    if given:
      shared = set.intersection(*(set(x) for x in given))
      found[name] = {k: np.stack([x[k] for x in given]) for k in shared}
  return found


def summarise(curves: Curves) -> list[dict[str, Any]]:
  """Average each figure over the last quarter of the steps and the seeds.

  Returns:
    A row a method: means, and 'spread', the standard deviation over seeds of
    each (None of one seed).
  """
  table = []
  for name, figures in curves.items():
    row: dict[str, Any] = {"method": name}
    for key, values in sorted(figures.items()):
      tail = values[:, -max(1, round(_LAST * values.shape[1])) :].mean(axis=1)
      spread = float(tail.std(ddof=1)) if len(tail) > 1 else None
      row |= {"seeds": len(tail), key: float(tail.mean())}
      row[f"{key}_spread"] = spread
    table.append(row)
  return table


def draw(curves: Curves, path: str | os.PathLike[str], *, title: str) -> None:
  """Draw loss, gap and cosine over the steps, means over seeds.

  Args:
    curves: of `read`.
    path: the PNG to write; it is replaced whole or not at all.
    title: above all panels.
  """
  figure = mpl_figure.Figure(figsize=(11, 3.8), dpi=110, layout="constrained")
  panels = figure.subplots(1, len(_SHOWN))
  for axes, (key, label) in zip(panels, _SHOWN.items(), strict=True):
    for name, figures in curves.items():
      if key not in figures:
        continue
      mean = _smooth(figures[key].mean(axis=0))
      axes.plot(np.arange(1, len(mean) + 1), mean, label=name, linewidth=1.2)
    axes.set_xlabel("step", fontsize=9)
    axes.set_title(label, fontsize=9)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(
    handles,
    labels,
    loc="outside lower center",
    ncols=6,
    frameon=False,
    fontsize=8,
  )
  figure.suptitle(title, fontsize=10, x=0.02, ha="left")
  plots.save_png(figure, path)


def _smooth(values: np.ndarray) -> np.ndarray:
  """Average over a tenth of the steps, the part before each."""
  width = max(1, len(values) // 10)
  summed = np.cumsum(np.insert(values, 0, 0.0))
  ends = np.arange(1, len(values) + 1)
  starts = np.maximum(ends - width, 0)
  return (summed[ends] - summed[starts]) / (ends - starts)
