"""Picture of what exported files are worth: size, accuracy, latency."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure

from asga_jax.report import plots

_SIZE, _PROMISED = "#1f77b4", "#c0392b"
_LATENCY = ("#ff7f0e", "#9467bd")


def plot_export(
  rows: Sequence[Mapping[str, Any]],
  path: str | os.PathLike[str],
  *,
  baseline: str,
  title: str = "",
) -> None:
  """Draw size with top-1, and latency, by format.

  Args:
    rows: see `runs.measure.measure_files`.
    path: the PNG to write; it is replaced whole or not at all.
    baseline: the name of the row that latencies are multiples of; without one,
      or without latencies, sizes alone are drawn.
    title: the title.
  """
  base: Mapping[str, float] = next(
    (x["latency_ms"] for x in rows if x["name"] == baseline), {}
  )
  sized = [row for row in rows if row["file_bytes"] is not None]
  columns = 2 if base else 1
  figure = mpl_figure.Figure(
    figsize=(5.5 * columns, 1.7 + 0.5 * len(rows)),
    dpi=120,
    layout="constrained",
  )
  left, *right = figure.subplots(1, columns, squeeze=False)[0]
  _draw_sizes(left, sized)
  for axes in right:
    _draw_latencies(axes, rows, base)
  if title:
    figure.suptitle(title, fontsize=11)
  plots.save_png(figure, path)


def _draw_sizes(axes: mpl_axes.Axes, rows: Sequence[Mapping[str, Any]]) -> None:
  places = np.arange(len(rows))
  sizes = [row["file_bytes"] / 1e6 for row in rows]
  axes.barh(places, sizes, height=0.6, color=_SIZE, label="file")
  for place, (size, row) in enumerate(zip(sizes, rows, strict=True)):
    text = f"{size:.3g} MB"
    if row["top1"] is not None:
      text += f", top-1 {100 * row['top1']:.2f} %"
    # Right of the mark too.
    right = max(size, row["promised_bytes"] / 1e6) + 0.02 * max(sizes)
    axes.text(right, place, text, va="center", fontsize=8)
  axes.plot(
    [row["promised_bytes"] / 1e6 for row in rows],
    places,
    "|",
    color=_PROMISED,
    markersize=16,
    markeredgewidth=2,
    label="weights as promised",
  )
  _label(axes, rows)
  # Room for the words behind the longest bar.
  axes.set(xlabel="MB", xlim=(0, 1.6 * max(sizes, default=1)))
  _head(axes, "size and top-1")


def _draw_latencies(
  axes: mpl_axes.Axes,
  rows: Sequence[Mapping[str, Any]],
  base: Mapping[str, float],
) -> None:
  height = 0.8 / len(base)
  shortest = longest = 1.0
  for index, (batch, unit) in enumerate(base.items()):
    ratios = [row["latency_ms"][batch] / unit for row in rows]
    places = np.arange(len(rows)) + (index - (len(base) - 1) / 2) * height
    # From 1x on, so that what is faster reaches to the left.
    axes.barh(
      places,
      np.array(ratios) - 1,
      left=1,
      height=height,
      color=_LATENCY[index % len(_LATENCY)],
      label=f"batch {batch} (1x is {unit:.3g} ms)",
    )
    for ratio, place in zip(ratios, places, strict=True):
      axes.text(
        1.1 * max(ratio, 1), place, f"{ratio:.2f}x", va="center", fontsize=8
      )
    longest = max(longest, *ratios)
    shortest = min(shortest, *ratios)
  axes.axvline(1, color=_PROMISED, linewidth=1, linestyle="--")
  _label(axes, rows)
  axes.set(
    xlabel="time, multiples of the float ONNX",
    xscale="log",
    xlim=(0.8 * shortest, 3 * longest),
  )
  _head(axes, "latency")


def _head(axes: mpl_axes.Axes, title: str) -> None:
  axes.set_title(title, loc="left", fontsize=10)
  axes.legend(
    loc="lower right",
    bbox_to_anchor=(1, 0.98),
    ncols=2,
    fontsize=8,
    frameon=False,
  )


def _label(axes: mpl_axes.Axes, rows: Sequence[Mapping[str, Any]]) -> None:
  names = [
    f"{row['name']}\n({row['runtime']})"
    if row["runtime"] not in row["name"]
    else row["name"]
    for row in rows
  ]
  axes.set_yticks(range(len(rows)), names, fontsize=8)
  axes.invert_yaxis()
  axes.grid(axis="x", alpha=0.3)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
