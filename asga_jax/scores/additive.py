"""A sum over tensors, fitted to the losses of policies."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize

# Strengths of the ridge that are compared, as counts of policies.
_RIDGES = tuple(float(x) for x in np.geomspace(0.1, 100, 13))
FOLDS = 10


def fit(
  widths: Mapping[str, Sequence[int]],
  drawn: Sequence[Mapping[str, int]],
  measured: np.ndarray,
) -> tuple[dict[str, np.ndarray], float]:
  """Fit a sum over tensors to losses of policies.

  Args:
    widths: group -> bits of each candidate, in any order.
    drawn: policies, group -> index of its candidate.
    measured: their losses, shape (policies,).

  Returns:
    Group -> what each candidate takes off the loss beside the fewest bits, at
    least 0 and never less with more bits; and the share of the variance that
    is predicted where it was not fitted (cross-validation), below 0 if the
    mean predicts better.
  """
  orders = {group: np.argsort(bits) for group, bits in widths.items()}
  columns = []
  for group, order in orders.items():
    ranks = np.empty(len(order), int)
    ranks[order] = np.arange(len(order))
    rank = ranks[[policy[group] for policy in drawn]]
    columns += [rank >= step for step in range(1, len(order))]
  design = np.stack(columns, axis=1).astype(np.float64)
  folds = np.arange(len(measured)) % FOLDS

  def left_out(ridge: float) -> float:
    errors = np.empty(len(measured))
    for fold in range(FOLDS):
      test = folds == fold
      constant, gains = _ridge(design[~test], measured[~test], ridge)
      errors[test] = measured[test] - constant + design[test] @ gains
    return float(np.mean(errors**2))

  by_ridge = {ridge: left_out(ridge) for ridge in _RIDGES}
  best = min(by_ridge, key=by_ridge.__getitem__)
  spread = float(np.var(measured))
  equal = np.ptp(measured) <= 1e-12 * np.abs(measured).max()
  share = 0.0 if equal else 1 - by_ridge[best] / spread
  _, gains = _ridge(design, measured, best)
  found, start = {}, 0
  for group, order in orders.items():
    end = start + len(order) - 1
    found[group] = np.empty(len(order))
    found[group][order] = [0.0, *np.cumsum(gains[start:end])]
    start = end
  return found, share


def _ridge(
  design: np.ndarray, measured: np.ndarray, ridge: float
) -> tuple[float, np.ndarray]:
  """Fit losses as a constant less gains that are not negative."""
  means, mean = design.mean(axis=0), float(measured.mean())
  matrix = np.concatenate(
    [design - means, np.sqrt(ridge) * np.eye(design.shape[1])]
  )
  target = np.concatenate([mean - measured, np.zeros(design.shape[1])])
  gains, _ = optimize.nnls(matrix, target)
  return mean + float(means @ gains), gains
