"""The integer program over the bits of a network's layers.

One binary variable for every pair (weight bits, activation bits) of every
layer. A layer takes one pair; layers of a tied group have equal marginals; a
cost that must lie in a window is one row. The solver's numbers are floats with
a tolerance, so every solution is checked again with exact costs, and excluded
if it fails.
"""

import fractions
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, sparse

from asga_jax.cost import costs as costs_lib

Exact = int | float | fractions.Fraction
# One variable of each layer, in the order of the calls.
Picks = tuple[int, ...]

# The solver's tolerances are absolute, about 1e-6. At these scales they mean
# 1e-10 of a limit and 1e-9 of the widest layer's spread of scores.
_ROW_SCALE = 1e4
_SCORE_SCALE = 1e3


class PairProgram(NamedTuple):
  """Variables, structure and costs; scores and windows come with `solve`."""

  network: costs_lib.NetworkStats
  choices: costs_lib.Choices
  costs: Mapping[str, costs_lib.Cost]
  # Path -> the layer's variables, shape=(weight bits, activation bits),
  # dtype=int64; all layers together count from 0 to size - 1.
  pairs: Mapping[str, np.ndarray]
  size: int
  # Structure: matrix @ x == right; shape=(rows, size) and (rows,).
  matrix: sparse.csr_array
  right: np.ndarray
  # Cost of each variable, shape=(size,), and what is added, by cost.
  rows: Mapping[str, np.ndarray]
  constants: Mapping[str, costs_lib.Number]


def build(
  network: costs_lib.NetworkStats,
  choices: costs_lib.Choices,
  costs: Sequence[costs_lib.Cost],
) -> PairProgram:
  """Build the program of a network.

  Raises:
    ValueError: choices that do not fit the network; see `costs.cost_tables`.
  """
  rows, constants = {}, {}
  for cost in costs:
    tables, constants[cost.name] = costs_lib.cost_tables(network, choices, cost)
    rows[cost.name] = np.concatenate([tables[p].ravel() for p in network.paths])
  pairs, size = {}, 0
  for path in network.paths:
    choice = choices[path]
    shape = (len(choice.weight_bits), len(choice.activation_bits))
    pairs[path] = size + np.arange(math.prod(shape)).reshape(shape)
    size += pairs[path].size
  matrix, right = _structure(choices, pairs, size)
  return PairProgram(
    network=network,
    choices=choices,
    costs={cost.name: cost for cost in costs},
    pairs=pairs,
    size=size,
    matrix=matrix,
    right=right,
    rows=rows,
    constants=constants,
  )


def _structure(
  choices: costs_lib.Choices, pairs: Mapping[str, np.ndarray], size: int
) -> tuple[sparse.csr_array, np.ndarray]:
  """Build the rows: one pair a layer, and equal marginals in a group."""
  rows = []
  right = []
  leaders: dict[tuple[str, str], np.ndarray] = {}
  for path, own in pairs.items():
    rows.append((own.ravel(), np.empty(0, int)))
    right.append(1)
    choice = choices[path]
    for kind, group, marginals in (
      ("weight", choice.weight_group, own),
      ("activation", choice.activation_group, own.T),
    ):
      if not group:
        continue
      leader = leaders.setdefault((kind, group), marginals)
      if leader is not marginals:
        # The last marginal follows from the others.
        rows += zip(marginals[:-1], leader[:-1], strict=True)
        right += [0] * (len(marginals) - 1)
  matrix = sparse.lil_array((len(rows), size))
  for row, (plus, minus) in enumerate(rows):
    matrix[row, plus] = 1
    matrix[row, minus] = -1
  return matrix.tocsr(), np.array(right)


def solve(
  program: PairProgram,
  scores: np.ndarray,
  windows: Mapping[str, tuple[Exact, Exact]],
) -> Picks | None:
  """Maximise the sum of scores; None if the windows cannot be met.

  Args:
    program: the program.
    scores: of each variable, shape [size], finite.
    windows: name of a cost -> lowest and highest cost, both included.

  Returns:
    One variable of each layer. The exact costs lie in the windows; equal
    arguments give equal results.
  """
  constraints = [
    optimize.LinearConstraint(program.matrix, program.right, program.right)
  ]
  for name, (low, high) in windows.items():
    unit = float(high or 1) / _ROW_SCALE
    constraints.append(
      optimize.LinearConstraint(
        program.rows[name][None] / unit,
        float(low - program.constants[name]) / unit,
        float(high - program.constants[name]) / unit,
      )
    )
  scores = np.asarray(scores, np.float64)
  blocks = [own.ravel() for own in program.pairs.values()]
  objective = np.concatenate([scores[x].max() - scores[x] for x in blocks])
  spread = objective.max()
  if spread:
    objective *= _SCORE_SCALE / spread
  while True:
    # Presolve saves most of the time, but on rare small programs HiGHS then
    # ends in an error; without it these solve.
    for presolve in (True, False):
      result = optimize.milp(
        objective,
        integrality=np.ones(program.size),
        bounds=optimize.Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0, "presolve": presolve},
      )
      if result.status == 2:
        return None
      if result.success:
        break
    else:
      raise RuntimeError(f"the integer program failed: {result.message}")
    picks = tuple(int(x[np.argmax(result.x[x])]) for x in blocks)
    if all(
      low <= total(program, picks, name) <= high
      for name, (low, high) in windows.items()
    ):
      return picks
    # Exclude exactly this one: costs nearer to the window may still be inside.
    cut = np.zeros((1, program.size))
    cut[0, list(picks)] = 1
    constraints.append(optimize.LinearConstraint(cut, ub=len(picks) - 1))


def bits(program: PairProgram, picks: Picks) -> dict[str, tuple[int, int]]:
  """Read picks as path -> (weight bits, activation bits)."""
  result = {}
  for (path, own), pick in zip(program.pairs.items(), picks, strict=True):
    weight, activation = divmod(pick - int(own[0, 0]), own.shape[1])
    choice = program.choices[path]
    result[path] = (
      choice.weight_bits[weight],
      choice.activation_bits[activation],
    )
  return result


def total(program: PairProgram, picks: Picks, name: str) -> costs_lib.Number:
  """Compute the exact cost of picks."""
  cost = program.costs[name]
  return costs_lib.total_cost(program.network, bits(program, picks), cost)
