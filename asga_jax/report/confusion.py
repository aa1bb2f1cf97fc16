"""The confusion matrix, as a picture of its own and for a page."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import collections as mpl_collections
from matplotlib import colors as mpl_colors
from matplotlib import figure as mpl_figure

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
  names = class_names if classes <= _MOST_NAMED else ()
  _write(axes, share / 100, names, ("black", "white"), (8, 7))
  plots.save_png(figure, path)


def _write(
  axes: mpl_axes.Axes,
  shares: np.ndarray,
  names: Sequence[str],
  inks: tuple[str, str],
  sizes: tuple[float, float],
) -> None:
  """Write names beside a matrix, and the shares in it where there is room.

  Args:
    axes: of the matrix, whose cells are 1 by 1.
    shares: see `matrix`.
    names: of the classes; may be left out.
    inks: for light cells, and for dark ones.
    sizes: of the letters of names, and of shares.
  """
  if names:
    svg.stand(axes, names, labelsize=sizes[0])
    axes.set_yticks(range(len(names)), names, fontsize=sizes[0])
  if len(shares) > _MOST_WRITTEN:
    return
  for row, column in np.argwhere(shares >= _FAINTEST):
    axes.text(
      column,
      row,
      f"{100 * shares[row, column]:.0f}",
      ha="center",
      va="center",
      fontsize=sizes[1],
      color=inks[int(shares[row, column] > 0.6)],
    )


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
  shown = [
    svg.plain(name if len(name) <= _NAME else name[: _NAME - 1] + "…")
    for name in names
    if classes <= _MOST_NAMED
  ]
  left = 7 * max(map(len, shown)) + 8 if shown else 4
  drawn = np.argwhere(shares >= _FAINTEST)
  square = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
  with svg.canvas(left + _SIDE + 4, _SIDE + left + 4) as figure:
    axes = svg.axes_within(figure, (left, left, 4, 4))
    axes.spines[:].set(visible=True, color=svg.ink("rule"))
    ends = -0.5, classes - 0.5
    axes.set(xlim=ends, ylim=ends[::-1], xticks=[], yticks=[])
    axes.add_collection(
      mpl_collections.PolyCollection(
        [place[::-1] + square for place in drawn],
        facecolors=[
          mpl_colors.to_rgba(svg.ink(0), shares[tuple(place)])
          for place in drawn
        ],
        linewidths=0,
      )
    )
    _write(axes, shares, shown, (svg.ink("text"), svg.ink("back")), (11, 11))
    return figures.Chart(title, svg.inline(figure, "confusion matrix"))
