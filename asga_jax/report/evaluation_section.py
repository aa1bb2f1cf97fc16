"""The part of a report that shows what launch/evaluate.py found."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from asga_jax.report import markup

_SIDE = 400  # of the matrix, in units of the drawing
_MOST_NAMED = 30  # classes: more names would not be legible
_MOST_WRITTEN = 12  # likewise for the shares in the cells
_NAME = 16  # characters of a name beside the matrix
_MISTAKES = 10  # lines of the table of mistakes
_FAINTEST = 0.01  # share of a class from which on a cell is drawn


def make_section(evaluation: Mapping[str, Any]) -> str:
  """Show an evaluation: its figures, and the confusion of the first network.

  Args:
    evaluation: what `evaluate_run.run` writes, checked.

  Returns:
    A section of HTML.
  """
  networks = evaluation["networks"]
  rows = [
    (
      label,
      *(markup.Cell(f"{100 * x[name]:.2f} %") for name in ("top1", "top5")),
      markup.Cell(f"{x['loss']:.4f}"),
    )
    for label, x in networks.items()
  ]
  first = next(iter(networks))
  names = evaluation["class_names"]
  confusion = np.asarray(networks[first]["confusion"], np.int64)
  return markup.section(
    f"Evaluation on {evaluation['data']}, {evaluation['split']}",
    markup.table(["network", "top-1", "top-5", "loss"], rows),
    markup.paragraph(
      f"{evaluation['images']} images. Below: the mistakes of the first "
      "network.",
      quiet=True,
    ),
    f'<div class="charts few">{_matrix(confusion, names)}'
    f"{_mistakes(confusion, names)}</div>",
  )


def _shares(confusion: np.ndarray) -> np.ndarray:
  """Divide each row by the images of its class; shape (classes, classes)."""
  found: np.ndarray = confusion / np.maximum(
    confusion.sum(axis=1, keepdims=True), 1
  )
  return found


def _matrix(confusion: np.ndarray, names: list[str]) -> str:
  """Draw the matrix: the darker a cell, the larger its share of the row."""
  classes = len(names)
  cell = _SIDE / classes
  named = classes <= _MOST_NAMED
  left = 7 * min(max(map(len, names)), _NAME) + 8 if named else 4
  parts = []
  for (row, column), share in np.ndenumerate(_shares(confusion)):
    if share < _FAINTEST:
      continue
    x, y = left + column * cell, row * cell
    parts.append(
      f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}"'
      f' fill="var(--c0)" fill-opacity="{share:.2f}"/>'
    )
    if classes <= _MOST_WRITTEN:
      color = "back" if share > 0.5 else "text"
      parts.append(
        f'<text x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}"'
        f' text-anchor="middle" style="fill:var(--{color})">'
        f"{100 * share:.0f}</text>"
      )
  parts.append(
    f'<rect class="axis fixed" x="{left}" y="0" width="{_SIDE}"'
    f' height="{_SIDE}"/>'
  )
  if named:
    for index, name in enumerate(names):
      shown = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
      middle = (index + 0.5) * cell + 4
      parts += [
        f'<text x="{left - 5}" y="{middle:.1f}" text-anchor="end">'
        f"{markup.escape(shown)}</text>",
        f'<text transform="translate({left + middle:.1f} {_SIDE + 6})'
        f' rotate(-90)" text-anchor="end">{markup.escape(shown)}</text>',
      ]
  height = _SIDE + (left if named else 4)
  return (
    "<figure><h3>Rows: classes. Columns: what they are taken for (%)</h3>"
    f'<svg class="fluid" viewBox="0 0 {left + _SIDE + 4} {height}" role="img"'
    f' aria-label="confusion matrix">{"".join(parts)}</svg></figure>'
  )


def _mistakes(confusion: np.ndarray, names: list[str]) -> str:
  """Tabulate the mistakes that are made most often."""
  wrong = confusion * ~np.eye(len(names), dtype=bool)
  shares = _shares(confusion)
  rows = []
  for place in np.argsort(-wrong, axis=None, kind="stable")[:_MISTAKES]:
    row, column = np.unravel_index(place, wrong.shape)
    if wrong[row, column]:
      share = float(shares[row, column])
      rows.append(
        (
          names[row],
          names[column],
          markup.Cell(str(wrong[row, column])),
          markup.Cell(f"{100 * share:.1f}", share=share),
        )
      )
  if not rows:
    return markup.paragraph("No mistake was made.")
  head = ("class", "taken for", "images", "% of the class")
  return (
    f"<figure><h3>Most frequent mistakes</h3>{markup.table(head, rows)}"
    "</figure>"
  )
