"""Roundings of a kernel whose errors are made good by its other weights."""

from typing import NamedTuple

import numpy as np

# Of the mean square of a layer's inputs: how far a kernel is held to what it
# is where few inputs say more.
DAMPING = 0.01
# Columns whose errors are passed on at once.
_BLOCK = 64


class Solved(NamedTuple):
  """A kernel that is about to be rounded; it serves any grid."""

  target: np.ndarray  # shape (groups, summed, features), in the order below
  order: np.ndarray  # shape (groups, summed): which weight comes when
  # Cholesky factor of the inverse of the damped gram, (groups, summed, summed).
  upper: np.ndarray


class Grid(NamedTuple):
  """The grid of each feature."""

  steps: np.ndarray  # float32, shape (groups, features)
  lower: float
  upper: float
  offset: float

  def nearest(self, values: np.ndarray) -> np.ndarray:
    """Round values, shape (groups, features)."""
    codes = values / self.steps - self.offset
    return self.steps * (
      np.rint(np.clip(codes, self.lower, self.upper)) + self.offset
    )


def solve_columns(
  columns: np.ndarray, gram: np.ndarray, cross: np.ndarray
) -> Solved:
  """Find the kernels of least squares, and in which order to round them.

  Args:
    columns: float kernels, shape (groups, summed, features).
    gram: mean products of quantized inputs, shape (groups, summed, summed).
    cross: mean products of quantized inputs and inputs.
  """
  squares = np.diagonal(gram, axis1=1, axis2=2)
  damping = DAMPING * squares.mean(axis=1)[:, None, None]
  # Of inputs that are always the same there is nothing to make good.
  damping = np.where(damping > 0, damping, 1)
  inverse = np.linalg.inv(gram + damping * np.eye(gram.shape[1]))
  target = inverse @ (cross @ columns + damping * columns)
  order = np.argsort(-squares, axis=1, kind="stable")
  inverse = np.take_along_axis(inverse, order[:, :, None], axis=1)
  inverse = np.take_along_axis(inverse, order[:, None, :], axis=2)
  return Solved(
    np.take_along_axis(target, order[:, :, None], axis=1),
    order,
    np.linalg.cholesky(inverse).swapaxes(1, 2),
  )


def round_columns(solved: Solved, grid: Grid) -> np.ndarray:
  """Round kernels, each weight's error made good by those that follow.

  Args:
    solved: the kernels.
    grid: of each feature.

  Returns:
    What lies on the grid, shape (groups, summed, features), in its own order.
  """
  left, upper = solved.target.copy(), solved.upper
  summed = left.shape[1]
  rounded = np.empty_like(left)
  for start in range(0, summed, _BLOCK):
    end = min(start + _BLOCK, summed)
    errors = np.empty_like(left[:, start:end])
    for i in range(start, end):
      rounded[:, i] = grid.nearest(left[:, i])
      errors[:, i - start] = (left[:, i] - rounded[:, i]) / upper[:, i, i, None]
      left[:, i + 1 : end] -= (
        upper[:, i, i + 1 : end, None] * errors[:, i - start, None]
      )
    left[:, end:] -= upper[:, start:end, end:].swapaxes(1, 2) @ errors
  found = np.empty_like(rounded)
  np.put_along_axis(found, solved.order[:, :, None], rounded, axis=1)
  return found
