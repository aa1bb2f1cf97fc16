"""The picture of a confusion matrix."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib import figure as mpl_figure

from asga_jax.report import plots

_MOST_NAMED = 30  # classes: more names would not be legible
_MOST_WRITTEN = 12  # likewise for the shares in the cells


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
