"""Uniform bits within a budget: what a searched policy has to beat."""

from collections.abc import Mapping, Sequence

from asga_jax.allocation import choose
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib

Bits = dict[str, tuple[int, int]]


def uniform_bits(
  network: costs_lib.NetworkStats,
  choices: costs_lib.Choices,
  costs: Sequence[costs_lib.Cost],
  limits: Mapping[str, costs_lib.Number],
) -> Bits:
  """Give all layers the same bits, and some the next ones where there is room.

  Every tensor with a choice gets one width, the largest that fits (where it
  lacks that candidate, the next lower one or its lowest). Where the limits
  leave room, as many layers as fit get the next width for weights and input
  together, spread evenly over the order of the calls; tied layers together.

  Args:
    network: the deployed network.
    choices: candidates of every layer.
    costs: at least those that are limited.
    limits: name of a cost -> limit > 0, at least one; see `budget.resolve`.

  Returns:
    Path -> (weight bits, activation bits), in the order of the calls.

  Raises:
    InfeasibleBudgetError: no policy meets the limits, or no uniform one.
    ValueError: a limit without a cost.
  """
  choose.check_feasible(network, choices, costs, limits)
  known = costs_lib.by_name(costs)

  def fits(bits: Bits) -> bool:
    return all(
      costs_lib.total_cost(network, bits, known[name]) <= limit
      for name, limit in limits.items()
    )

  several = [
    candidates
    for choice in choices.values()
    for candidates in (choice.weight_bits, choice.activation_bits)
    if len(candidates) > 1
  ]
  # Where nothing has a choice, any width gives the same.
  widths = sorted(set().union(*several)) or [0]
  levels = [_at_width(network, choices, width) for width in widths]
  fitting = [index for index, bits in enumerate(levels) if fits(bits)]
  if not fitting:
    raise budget_lib.InfeasibleBudgetError(
      f"other policies meet the budget, but no uniform bits of {widths} do:"
      " expected a larger budget."
    )
  low = levels[fitting[-1]]
  high = levels[min(fitting[-1] + 1, len(levels) - 1)]
  units = _units(choices, [path for path in low if low[path] != high[path]])
  for count in range(len(units) - 1, 0, -1):
    raised = {path for unit in _spread(units, count) for path in unit}
    bits = {path: (high if path in raised else low)[path] for path in low}
    if fits(bits):
      return bits
  return low


def _at_width(
  network: costs_lib.NetworkStats, choices: costs_lib.Choices, width: int
) -> Bits:
  """Give each tensor its largest candidate up to a width, or its lowest."""

  def pick(candidates: Sequence[int]) -> int:
    return max([x for x in candidates if x <= width] or [min(candidates)])

  return {
    path: (pick(choices[path].weight_bits), pick(choices[path].activation_bits))
    for path in network.paths
  }


def _units(
  choices: costs_lib.Choices, paths: Sequence[str]
) -> list[tuple[str, ...]]:
  """Part layers into those that share no bits with others, in call order."""
  units: list[tuple[set[tuple[str, str]], list[str]]] = []
  for path in paths:
    choice = choices[path]
    keys = {
      ("weight", choice.weight_key(path)),
      ("activation", choice.activation_key(path)),
    }
    tied = [unit for unit in units if unit[0] & keys]
    if not tied:
      units.append((keys, [path]))
      continue
    for other in tied[1:]:
      units.remove(other)
      tied[0][0].update(other[0])
      tied[0][1].extend(other[1])
    tied[0][0].update(keys)
    tied[0][1].append(path)
  return [tuple(members) for _, members in units]


def _spread(
  units: Sequence[tuple[str, ...]], count: int
) -> list[tuple[str, ...]]:
  """Take some units at even distances: the i-th where i count / n steps up."""
  total = len(units)
  return [
    unit
    for i, unit in enumerate(units)
    if (i + 1) * count // total > i * count // total
  ]
