"""The integer program over the bits of a network's layers.

One binary variable for every pair (weight bits, activation bits) of every
layer. A layer takes one pair; layers of a tied group have equal marginals.
Scores, and windows in which costs must lie, come with `pair_solver.solve`.
"""

import fractions
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from asga_jax.cost import costs as costs_lib

Exact = int | float | fractions.Fraction
# One variable of each layer, in the order of the calls.
Picks = tuple[int, ...]


class PairProgram(NamedTuple):
  """Variables, structure and costs."""

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


def exact(number: Exact) -> int | fractions.Fraction:
  """Read a float as the decimal that it is written as."""
  if isinstance(number, float):
    return fractions.Fraction(repr(number))
  return number


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
