"""One search, every budget: the Pareto curve of its scores."""

import decimal
import math
from collections.abc import Mapping

import numpy as np

from asga_jax import checks
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.allocation import curve as pareto_curve
from asga_jax.allocation import frontier
from asga_jax.allocation import space as search_space
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib

# Of what costs are shown in.
UNITS = {
  "bops": "BOPs",
  "size": "bytes",
  "container_size": "bytes",
  "latency": "ms",
}
_LEAST_POINTS = 2

Bits = Mapping[str, tuple[int, int]]


def pareto(
  result: result_lib.SearchResult,
  *,
  cost: str = "bops",
  score: str | None = None,
  budget: str | None = None,
  points: int | None = 40,
) -> pareto_curve.ParetoCurve:
  """Give the exact curve of score against cost from one search.

  Each point is the exact optimum at its own budget: no policy that costs no
  more scores higher, and none of its score costs less. (Scores that differ by
  less than 1e-9 of the widest layer's spread count as equal.) Points run from
  the lowest reachable cost to the best score without a budget; between them
  lie the optima at the costs of the uniform policies and of the search's own,
  and at costs spread evenly by ratio, or, where `points` allows it, every point
  that there is.

  There is no `min_use` here: a policy that costs more and scores less is no
  point of the curve, so that it ends at the best score. `allocate` gives the
  same policies below that; where its `min_use` asks for more cost than the
  best policy of the budget has, it gives one below the curve.

  Args:
    result: of a search.
    cost: 'bops', 'size', 'latency' or the name of a cost of your own.
    score: one of the result's; None for the search's.
    budget: what every point is to meet besides, such as 'size=6MB'; if it
      names `cost`, the curve ends there.
    points: the largest number of points, at least 2; None for the whole curve,
      which may have thousands for a large network.

  Returns:
    The curve, its costs in BOPs, bytes, ms or the unit of a cost of your own,
    with the uniform policies and the policy of the search's own budget where
    they meet `budget`. `policy_at` makes a policy of a point.

  Raises:
    InfeasibleBudgetError: no policy meets `budget`.
    ValueError: an unknown cost or score, a malformed budget, or fewer points.
  """
  score = result_lib.score_of(result, score)
  if points is not None:
    checks.number("points", points, least=_LEAST_POINTS, whole=True)
  space = result.space
  costs = costs_lib.by_name(search_space.known_costs(result.costs))
  checks.text("cost", cost, "the name of a cost")
  if cost not in costs:
    supply = (
      " (asga_jax.latency_cost(table) makes one)" if cost == "latency" else ""
    )
    raise ValueError(
      f"cost={checks.short(cost)}; expected one of those of the search,"
      f" {sorted(costs)}{supply}."
    )
  parsed = budget_lib.Budget(())
  if budget is not None and not (isinstance(budget, str) and not budget):
    parsed = budget_lib.parse_budget(budget)
  limits = budget_lib.resolve(
    parsed, space.network, space.choices, list(costs.values())
  )

  def point(bits: Bits) -> pareto_curve.ParetoPoint:
    return pareto_curve.ParetoPoint(
      cost=_shown(cost, costs_lib.total_cost(space.network, bits, costs[cost])),
      score=_score_of(space, result.scores[score], bits),
      bits=bits,
    )

  def meets(bits: Bits) -> bool:
    return all(
      costs_lib.total_cost(space.network, bits, costs[name]) <= limit
      for name, limit in limits.items()
    )

  own = result_lib.allocate(result)
  chosen = {
    path: (layer.weight_bits, layer.activation_bits)
    for path, layer in own.layers.items()
  }
  uniform = {
    count: point(bits)
    for count, bits in _uniform_policies(space).items()
    if meets(bits)
  }
  beside = [*uniform.values(), *([point(chosen)] if meets(chosen) else [])]
  found, complete = frontier.find_points(
    space.network,
    space.choices,
    *search_space.split_scores(space, result.scores[score]),
    list(costs.values()),
    cost,
    limits,
    points=points,
    # What the curve has where these policies lie.
    at=[
      costs_lib.total_cost(space.network, even.bits, costs[cost])
      for even in beside
    ],
  )
  rising: list[pareto_curve.ParetoPoint] = []
  for one in map(point, found):
    # Scores that differ by less than their sums are rounded are equal.
    if not rising or one.score > rising[-1].score:
      rising.append(one)
  try:
    float_cost = _shown(cost, costs_lib.float_cost(space.network, costs[cost]))
  except ValueError:  # a table without float32
    float_cost = None
  return pareto_curve.ParetoCurve(
    model=result.model_name,
    cost=cost,
    unit=UNITS.get(cost, ""),
    score=score,
    points=tuple(rising),
    uniform=tuple(
      pareto_curve.UniformPoint(count, even.cost, even.score)
      for count, even in uniform.items()
    ),
    chosen=point(chosen) if meets(chosen) else None,
    budget=str(parsed),
    float_cost=float_cost,
    complete=complete,
  )


def policy_at(
  result: result_lib.SearchResult, curve: pareto_curve.ParetoCurve, index: int
) -> policy_lib.Policy:
  """Make the policy of a point of the curve.

  Args:
    result: of the search that the curve is from.
    curve: from `pareto`, or read from its file.
    index: of the point, from the cheapest; negative from the dearest.

  Returns:
    The policy. Its budget is the curve's and the point's exact cost.

  Raises:
    IndexError: there is no such point.
    ValueError: a curve of other layers, or a point that costs nothing.
  """
  result_lib.check(result)
  pareto_curve.check(curve)
  checks.number("index", index, whole=True)
  if not -len(curve.points) <= index < len(curve.points):
    raise IndexError(
      f"index={index}; expected that of one of {len(curve.points)} points."
    )
  point = curve.points[index]
  parsed = budget_lib.parse_budget(budget_text(curve.cost, point.cost))
  if curve.budget:
    held = budget_lib.parse_budget(curve.budget).constraints
    others = [entry for entry in held if entry.kind != curve.cost]
    parsed = budget_lib.Budget((*parsed.constraints, *others))
  space = result.space
  costs = search_space.known_costs(result.costs)
  return result_lib.make_policy(
    space,
    point.bits,
    budget_lib.resolve(parsed, space.network, space.choices, costs),
    costs=result.costs,
    budget=str(parsed),
    model_name=result.model_name,
    input_shape=result.input_shape,
    provenance={**result.provenance, "score": curve.score},
  )


def budget_text(cost: str, amount: costs_lib.Number) -> str:
  """Write an amount, in the unit of a curve, as a budget of exactly that."""
  exact = decimal.Decimal(repr(amount))
  suffix = {"bytes": "B", "ms": "ms"}.get(UNITS.get(cost, ""), "")
  return f"{cost}={exact:f}{suffix}"


def _shown(cost: str, amount: costs_lib.Number) -> costs_lib.Number:
  """Turn an amount into the unit of the curve: bits into bytes, exactly."""
  if UNITS.get(cost) != "bytes":
    return amount
  return amount // 8 if amount % 8 == 0 else amount / 8


def _score_of(
  space: search_space.SearchSpace,
  scores: Mapping[str, np.ndarray],
  bits: Bits,
) -> float:
  """Sum the scores of a policy, each group once."""
  terms = {}
  for path, choice in space.choices.items():
    for group, candidates, count in (
      (choice.weight_group, choice.weight_bits, bits[path][0]),
      (choice.activation_group, choice.activation_bits, bits[path][1]),
    ):
      terms[group] = float(scores[group][candidates.index(count)])
  return math.fsum(terms.values())


def _uniform_policies(space: search_space.SearchSpace) -> dict[int, Bits]:
  """List the policies that have the same bits wherever there is a choice."""
  choices = space.choices.values()
  several = [
    bits
    for choice in choices
    for bits in (choice.weight_bits, choice.activation_bits)
    if len(bits) > 1
  ]
  common = set.intersection(*map(set, several)) if several else set()

  def pick(candidates: tuple[int, ...], count: int) -> int:
    return count if len(candidates) > 1 else candidates[0]

  return {
    count: {
      path: (
        pick(choice.weight_bits, count),
        pick(choice.activation_bits, count),
      )
      for path, choice in space.choices.items()
    }
    for count in sorted(common)
  }
