"""The confusion matrix, as a picture of its own and for a page."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib import collections as mpl_collections
from matplotlib import colors as mpl_colors
from matplotlib import figure as mpl_figure
from matplotlib import patches as mpl_patches

from asga_jax.report import figures, plots, svg

_MOST_NAMED = 30  # classes: more names would not be legible
_MOST_WRITTEN = 12  # likewise for the shares in the cells
# For a page: its side, the characters of a name beside it, and the share of a
# class from which on a cell is drawn.
_SIDE, _NAME, _FAINTEST = 400, 16, 0.01


def plot_confusion(
  confusion: np.ndarray,
  path: str | os.PathLike[str],
  *,
  class_names: Sequence[str],
  title: str,
) -> None:
  """Draw a confusion matrix, each row as shares of its class.

  Args:
    confusion: images of a class (row) that are taken for a class (column),
      shape (classes, classes).
    path: the PNG to write; it is replaced whole or not at all.
    class_names: of the classes.
    title: the title.

  Raises:
    ValueError: the names do not fit the matrix.
  """
  classes = len(class_names)
  if confusion.shape != (classes, classes):
    raise ValueError(
      f"confusion has shape {list(confusion.shape)}; expected "
      f"[{classes}, {classes}], as there are names"
    )
  totals = confusion.sum(axis=1, keepdims=True)
  share = 100 * confusion / np.maximum(totals, 1)
  size = min(10.0, 3 + 0.45 * classes)
  figure = mpl_figure.Figure(
    figsize=(size + 1, size), dpi=120, layout="constrained"
  )
  axes = figure.subplots()
  image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
  figure.colorbar(image, ax=axes, label="% of the class", shrink=0.8)
  axes.set(xlabel="predicted", ylabel="class", title=title)
  if classes <= _MOST_NAMED:
    axes.set_xticks(range(classes), class_names, rotation=90, fontsize=8)
    axes.set_yticks(range(classes), class_names, fontsize=8)
  if classes <= _MOST_WRITTEN:
    for row, column in np.ndindex(classes, classes):
      value = share[row, column]
      if value >= 1:
        axes.text(
          column,
          row,
          f"{value:.0f}",
          ha="center",
          va="center",
          fontsize=7,
          color="white" if value > 60 else "black",
        )
  plots.save_png(figure, path)


def matrix(
  title: str, shares: np.ndarray, names: Sequence[str]
) -> figures.Chart:
  """Draw what classes are taken for: the darker a cell, the larger its share.

  Args:
    title: what stands over the matrix.
    shares: of each class (row) those taken for a class (column), in [0, 1];
      shape (classes, classes).
    names: of the classes.
  """
  classes = len(names)
  cell = _SIDE / classes
  shown = [
    name if len(name) <= _NAME else name[: _NAME - 1] + "…"
    for name in names
    if classes <= _MOST_NAMED
  ]
  left = 7 * max(map(len, shown)) + 8 if shown else 4
  with svg.canvas(left + _SIDE + 4, _SIDE + left + 4) as figure:
    axes = svg.whole_axes(figure)
    rows, columns = np.nonzero(shares >= _FAINTEST)
    corners = np.stack([left + columns * cell, rows * cell], axis=-1)
    square = cell * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    axes.add_collection(
      mpl_collections.PolyCollection(
        [corner + square for corner in corners],
        facecolors=[
          mpl_colors.to_rgba(svg.ink(0), shares[place])
          for place in zip(rows, columns, strict=True)
        ],
        linewidths=0,
      )
    )
    if classes <= _MOST_WRITTEN:
      for (x, y), row, column in zip(corners, rows, columns, strict=True):
        share = shares[row, column]
        axes.text(
          x + cell / 2,
          y + cell / 2 + 4,
          f"{100 * share:.0f}",
          ha="center",
          color=svg.ink("back" if share > 0.5 else "text"),
        )
    axes.add_artist(
      mpl_patches.Rectangle(
        (left, 0.5),
        _SIDE,
        _SIDE,
        facecolor="none",
        edgecolor=svg.ink("rule"),
      )
    )
    for index, name in enumerate(shown):
      middle = (index + 0.5) * cell + 4
      axes.text(left - 5, middle, svg.plain(name), ha="right")
      svg.upright(axes, left + middle, _SIDE + 6, name)
    return figures.Chart(title, svg.inline(figure, "confusion matrix"))
