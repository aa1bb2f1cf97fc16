"""Solves the integer program over the bits of a network's layers, exactly.

A cost that must lie in a window is one row. The solver's numbers are floats
with a tolerance, so every solution is checked again with exact costs, and
excluded if it fails.

Few pairs of a layer can be in the optimum. The linear program's multipliers
bound the score of every solution that has a pair; the integer program is solved
over the pairs of the best bounds, and over more of them until no pair that is
left out can be in a better solution (the core of a knapsack problem: Balas and
Zemel, An algorithm for large zero-one knapsack problems, 1980).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

from asga_jax.allocation import program as pair_program

# The solver's tolerances are absolute, about 1e-6. At these scales they mean
# 1e-10 of what a limit leaves above the lowest cost, and 1e-9 of the widest
# layer's spread of scores.
_ROW_SCALE = 1e4
_SCORE_SCALE = 1e3
_TOLERANCE = 1e-5  # a few of them
# Programs of no more variables are solved whole: bounds would save no time.
_FEW = 50

# Name of a cost -> lowest and highest, both included.
Windows = Mapping[str, tuple[pair_program.Exact, pair_program.Exact]]


class _Scaled(NamedTuple):
  """Minimise loss @ x with lows <= rows @ x <= highs, one pair a layer."""

  loss: np.ndarray
  rows: np.ndarray
  lows: np.ndarray
  highs: np.ndarray
  # Whether a pair of this cost can lie inside the windows, shape=(size,).
  allowed: np.ndarray


def _scale(
  program: pair_program.PairProgram,
  loss: np.ndarray,
  windows: Windows,
) -> _Scaled:
  """Write the windows as rows of what a layer costs above its cheapest pair."""
  rows, lows, highs = [], [], []
  allowed = np.ones(program.size, bool)
  for name, (low, high) in windows.items():
    excess, least = _above_least(program, program.rows[name])
    lowest = sum(map(pair_program.exact, [*least, program.constants[name]]))
    slack = float(pair_program.exact(high) - lowest)
    # Not finer than floats are at the size of the limit.
    unit = max(slack, 1e-3 * float(high)) or 1.0
    allowed &= excess <= slack + 1e-9 * unit
    rows.append(excess * (_ROW_SCALE / unit))
    highs.append(slack * (_ROW_SCALE / unit))
    # At least 0: without it HiGHS tries more, and prints what it tries.
    lows.append(
      max(0.0, float(pair_program.exact(low) - lowest) * (_ROW_SCALE / unit))
    )
  return _Scaled(
    loss=loss,
    rows=np.array(rows).reshape(-1, program.size),
    lows=np.array(lows),
    highs=np.array(highs),
    allowed=allowed,
  )


def _above_least(
  program: pair_program.PairProgram, values: np.ndarray
) -> tuple[np.ndarray, list[Any]]:
  """Subtract the least value of each layer, and list these."""
  least = [values[own].min().item() for own in program.pairs.values()]
  sizes = [own.size for own in program.pairs.values()]
  return values - np.repeat(least, sizes), least


def _bounds(
  program: pair_program.PairProgram, scaled: _Scaled
) -> np.ndarray | None:
  """Bound the loss of every solution that has a pair from below, shape (size,).

  Any multipliers give such bounds; the linear program's give the best. None if
  even fractions of pairs cannot meet the rows.
  """
  if program.size <= _FEW:
    return np.where(scaled.allowed, -np.inf, np.inf)
  rows = np.concatenate([scaled.rows, -scaled.rows])
  limits = np.concatenate([scaled.highs, -scaled.lows])
  found = optimize.linprog(
    scaled.loss,
    A_ub=rows,
    b_ub=limits,
    A_eq=program.matrix,
    b_eq=program.right,
    bounds=np.stack([np.zeros(program.size), scaled.allowed], axis=1),
    method="highs",
  )
  if found.status == 2:
    return None
  if not found.success:
    return np.where(scaled.allowed, -np.inf, np.inf)
  prices = np.minimum(found.ineqlin.marginals, 0)
  values = found.eqlin.marginals
  reduced = scaled.loss - program.matrix.T @ values - prices @ rows
  above, least = _above_least(
    program, np.where(scaled.allowed, reduced, np.inf)
  )
  return above + sum(least) + values @ program.right + prices @ limits


def solve(
  program: pair_program.PairProgram,
  scores: np.ndarray,
  windows: Windows,
  *,
  above: float = -math.inf,
) -> pair_program.Picks | None:
  """Maximise the sum of scores; None if the windows cannot be met.

  Args:
    program: the program.
    scores: of each variable, shape [size], finite.
    windows: name of a cost -> lowest and highest cost, both included.
    above: solutions whose scores do not sum to more than this may be left out,
      which takes less time.

  Returns:
    One variable of each layer. The exact costs lie in the windows; equal
    arguments give equal results.
  """
  loss, least = _above_least(program, -np.asarray(scores, np.float64))
  scale = _SCORE_SCALE / (loss.max() or 1.0)
  scaled = _scale(program, loss * scale, windows)
  if not all(scaled.allowed[own].any() for own in program.pairs.values()):
    return None
  bounds = _bounds(program, scaled)
  if bounds is None:
    return None
  ordered = np.sort(bounds)
  most = (-sum(least) - above) * scale
  best = None
  excluded: list[pair_program.Picks] = []
  count = 2 * len(program.pairs)
  while True:
    bound = min(ordered[min(count, program.size - 1)], most + _TOLERANCE)
    kept = np.flatnonzero(scaled.allowed & (bounds <= bound))
    picks = _solve_among(program, scaled, windows, kept, excluded)
    if picks:
      best, most = picks, min(most, scaled.loss[list(picks)].sum())
    if most <= bound or len(kept) == scaled.allowed.sum():
      return best
    count *= 3


def _solve_among(
  program: pair_program.PairProgram,
  scaled: _Scaled,
  windows: Windows,
  kept: np.ndarray,
  excluded: list[pair_program.Picks],
) -> pair_program.Picks | None:
  """Solve over some of the variables; add to what is excluded."""
  if any(not np.isin(own, kept).any() for own in program.pairs.values()):
    return None
  structure = optimize.LinearConstraint(
    program.matrix[:, kept], program.right, program.right
  )
  rows = optimize.LinearConstraint(
    scaled.rows[:, kept], scaled.lows, scaled.highs
  )
  while True:
    cuts = np.zeros((len(excluded), program.size))
    for cut, picks in zip(cuts, excluded, strict=True):
      cut[list(picks)] = 1
    at_most = len(program.pairs) - 1
    # Presolve saves most of the time, but on rare small programs HiGHS then
    # ends in an error; without it these solve.
    for presolve in (True, False):
      found = optimize.milp(
        scaled.loss[kept],
        integrality=np.ones(len(kept)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
          structure,
          rows,
          optimize.LinearConstraint(cuts[:, kept], ub=at_most),
        ],
        options={"mip_rel_gap": 0, "presolve": presolve},
      )
      if found.status == 2:
        return None
      if found.success:
        break
    else:
      raise RuntimeError(f"the integer program failed: {found.message}")
    x = np.zeros(program.size)
    x[kept] = found.x
    picks = tuple(
      int(own.flat[np.argmax(x[own])]) for own in program.pairs.values()
    )
    if all(
      low <= pair_program.total(program, picks, name) <= high
      for name, (low, high) in windows.items()
    ):
      return picks
    # Exclude exactly this one: costs nearer to the window may still be inside.
    excluded.append(picks)
