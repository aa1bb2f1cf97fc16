"""The Pareto curve of a search: exact, whole, and as policies."""

import itertools
import math

import numpy as np
import pytest
from drawn_results import draw_case, make_result

import asga_jax
from asga_jax import every_budget
from asga_jax import policy as policy_lib
from asga_jax.allocation import curve as pareto_curve
from asga_jax.allocation import solver as pair_solver
from asga_jax.allocation import space as search_space
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib

COSTS = ("bops", "size", "latency", "energy")
SEEDS = pytest.mark.parametrize(
  "seeds",
  [
    pytest.param(range(5), id="few"),
    pytest.param(range(15), id="many", marks=pytest.mark.slow),
  ],
)


def brute_curve(costs, scores, allowed=None):
  """List (cost, score) that no other policy beats, by enumeration."""
  points = []
  for index in np.lexsort((-scores, costs)):
    if allowed is not None and not allowed[index]:
      continue
    if not points or scores[index] > points[-1][1] + 1e-8:
      points.append((costs[index], scores[index]))
  return points


def pairs_of(curve):
  return [(point.cost, point.score) for point in curve.points]


@SEEDS
@pytest.mark.parametrize("few", [0, 50], ids=["core", "whole"])
@pytest.mark.parametrize(
  "cost",
  [
    pytest.param(cost, marks=() if cost == "bops" else pytest.mark.slow)
    for cost in COSTS
  ],
)
def test_the_whole_curve_equals_brute_force(cost, few, seeds, monkeypatch):
  monkeypatch.setattr(pair_solver, "_FEW", few)
  lengths = []
  for seed in seeds:
    result, (policies, amounts, totals) = draw_case(seed)
    curve = asga_jax.pareto(result, cost=cost, points=None)
    expected = brute_curve(amounts[cost], totals)
    np.testing.assert_allclose(pairs_of(curve), expected, rtol=0, atol=1e-7)
    for point in curve.points:
      index = policies.index(dict(point.bits))
      assert point.cost == pytest.approx(amounts[cost][index], rel=1e-12)
      assert point.score == pytest.approx(totals[index], abs=1e-9)
    assert curve.complete
    lengths.append(len(curve.points))
  assert max(lengths) > 5


@SEEDS
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("points", [2, 3, 6])
def test_some_points_are_each_the_optimum_at_their_own_budget(
  cost, points, seeds
):
  for seed in seeds:
    result, (_, amounts, totals) = draw_case(seed)
    curve = asga_jax.pareto(result, cost=cost, points=points)
    expected = brute_curve(amounts[cost], totals)
    assert len(curve.points) <= points
    # As many as asked for, unless there are fewer.
    assert len(curve.points) == min(points, len(expected))
    assert curve.complete or len(expected) >= points
    assert not curve.complete or len(expected) <= points
    for point in curve.points:
      within = amounts[cost] <= point.cost * (1 + 1e-12)
      assert point.score == pytest.approx(totals[within].max(), abs=1e-7)
    for left, right in itertools.pairwise(curve.points):
      assert left.cost < right.cost
      assert left.score < right.score
    found = pairs_of(curve)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-7)
    np.testing.assert_allclose(found[-1], expected[-1], atol=1e-7)


@SEEDS
@pytest.mark.parametrize("budget", ["size=4bit", "size=4bit,bops=4bit"])
def test_other_budgets_hold_at_every_point(budget, seeds):
  for seed in seeds:
    result, (_, amounts, totals) = draw_case(seed)
    space = result.space
    limits = budget_lib.resolve(
      budget_lib.parse_budget(budget),
      space.network,
      space.choices,
      search_space.known_costs(result.costs),
    )
    limits["size"] /= 8
    allowed = np.all([amounts[n] <= x for n, x in limits.items()], axis=0)
    if not allowed.any():
      with pytest.raises(budget_lib.InfeasibleBudgetError):
        asga_jax.pareto(result, budget=budget)
      continue
    curve = asga_jax.pareto(result, budget=budget, points=None)
    expected = brute_curve(amounts["bops"], totals, allowed)
    np.testing.assert_allclose(pairs_of(curve), expected, rtol=0, atol=1e-7)
    for index in range(len(curve.points)):
      policy = asga_jax.policy_at(result, curve, index)
      assert policy.cost["size_bytes"] <= math.ceil(limits["size"])
      assert policy.budget.startswith(f"bops={curve.points[index].cost},size=")
      assert 0 < policy.cost["budget_used"] <= 1
    for even in curve.uniform:
      assert even.cost <= limits.get("bops", math.inf)


@pytest.mark.parametrize("cost", COSTS)
def test_a_point_makes_the_policy_that_its_budget_gives(cost):
  result, _ = draw_case(2)
  curve = asga_jax.pareto(result, cost=cost, points=5)
  for index, point in enumerate(curve.points):
    policy = asga_jax.policy_at(result, curve, index)
    bits = {
      path: (layer.weight_bits, layer.activation_bits)
      for path, layer in policy.layers.items()
    }
    assert bits == point.bits
    assert policy.cost["budget_used"] == 1
    assert policy.provenance == {"seed": 0, "score": "first_order"}
    assert policy_lib.from_json(policy_lib.to_json(policy)) == policy
    again = asga_jax.allocate(result, budget=policy.budget)
    assert every_budget._score_of(
      result.space,
      result.scores["first_order"],
      {p: (x.weight_bits, x.activation_bits) for p, x in again.layers.items()},
    ) == pytest.approx(point.score, abs=1e-7)
  with pytest.raises(IndexError):
    asga_jax.policy_at(result, curve, 99)


def two_layers(bits=(2, 4), count=2):
  network = costs_lib.NetworkStats(
    tuple(costs_lib.LayerStats(str(i), 100, 10) for i in range(count)), 0
  )
  choice = policy_lib.LayerChoice(bits, bits, searched=len(bits) > 1)
  return network, dict.fromkeys(network.paths, choice)


def equal_scores(network, bits):
  values = dict.fromkeys(network.paths, np.zeros(len(bits)))
  return values, values


def test_one_candidate_is_one_point():
  network, choices = two_layers(bits=(4,))
  result = make_result(network, choices, equal_scores(network, (4,)))
  curve = asga_jax.pareto(result)
  assert pairs_of(curve) == [(2 * 100 * 16, 0.0)]
  assert curve.complete
  assert curve.uniform == ()
  assert curve.chosen == curve.points[0]


def test_equal_scores_leave_the_cheapest_policy():
  network, choices = two_layers()
  result = make_result(network, choices, equal_scores(network, (2, 4)))
  curve = asga_jax.pareto(result)
  assert pairs_of(curve) == [(2 * 100 * 4, 0.0)]
  assert set(curve.points[0].bits.values()) == {(2, 2)}


def test_one_layer_by_hand():
  network, choices = two_layers(count=1)
  scores = {"0": np.array([0.0, 1.0])}, {"0": np.array([0.0, 3.0])}
  curve = asga_jax.pareto(make_result(network, choices, scores))
  # 2/4 and 4/2 cost the same: the better stays.
  assert pairs_of(curve) == [(400, 0.0), (800, 3.0), (1600, 4.0)]
  assert curve.points[1].bits == {"0": (2, 4)}
  assert curve.complete
  assert curve.float_cost == 100 * 32 * 32
  assert [(u.bits, u.cost, u.score) for u in curve.uniform] == [
    (2, 400, 0.0),
    (4, 1600, 4.0),
  ]


def test_a_better_policy_that_costs_less_ends_the_curve():
  network, choices = two_layers(count=1)
  scores = {"0": np.array([1.0, 0.0])}, {"0": np.array([1.0, 0.0])}
  curve = asga_jax.pareto(make_result(network, choices, scores))
  assert pairs_of(curve) == [(400, 2.0)]
  # The search's own policy has to use its budget, and lies below the curve.
  assert (curve.chosen.cost, curve.chosen.score) == (1600, 0.0)


def test_uniform_policies_and_the_search_s_own_lie_where_they_cost():
  result, _ = draw_case(8)
  curve = asga_jax.pareto(result)
  space = result.space
  assert curve.uniform
  for even in curve.uniform:
    bits = {
      path: (
        even.bits if len(choice.weight_bits) > 1 else choice.weight_bits[0],
        even.bits
        if len(choice.activation_bits) > 1
        else choice.activation_bits[0],
      )
      for path, choice in space.choices.items()
    }
    macs = {layer.path: layer.macs for layer in space.network.layers}
    assert even.cost == sum(
      macs[path] * bw * ba for path, (bw, ba) in bits.items()
    )
    best = max(p.score for p in curve.points if p.cost <= even.cost)
    assert even.score <= best + 1e-9
  own = asga_jax.allocate(result)
  assert curve.chosen.cost == own.cost["bops"]


def test_a_cost_of_nothing_has_no_budget():
  network, choices = two_layers(count=1)
  free = costs_lib.Cost("free", lambda layer, bw, ba: bw - 2)
  scores = {"0": np.array([0.0, 1.0])}, {"0": np.array([0.0, 1.0])}
  result = make_result(network, choices, scores, (free,))
  curve = asga_jax.pareto(result, cost="free")
  assert pairs_of(curve) == [(0, 1.0), (2, 2.0)]
  with pytest.raises(ValueError, match="free=0"):
    asga_jax.policy_at(result, curve, 0)


def test_a_latency_table_without_float_has_no_float_cost():
  network, choices = two_layers(count=1)
  table = {("0", bw, ba): 0.1 * bw * ba for bw in (2, 4) for ba in (2, 4)}
  scores = {"0": np.array([0.0, 1.0])}, {"0": np.array([0.0, 1.0])}
  result = make_result(
    network, choices, scores, (asga_jax.latency_cost(table),)
  )
  curve = asga_jax.pareto(result, cost="latency")
  assert (curve.unit, curve.float_cost) == ("ms", None)
  assert "-" in pareto_curve.format_table(curve).splitlines()[1]


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"cost": "watts"}, r"'watts'.*bops.*energy"),
    ({"score": "entropy"}, r"'entropy'.*first_order"),
    ({"points": 1}, r"points=1;.*>= 2"),
    ({"points": 2.5}, r"points=2.5"),
    ({"budget": "size=four"}, r"size=four"),
    ({"budget": "watts=3"}, r"watts"),
    ({"budget": "size=1B"}, r"lowest reachable"),
  ],
)
def test_bad_arguments_are_named(changes, named):
  with pytest.raises(ValueError, match=named):
    asga_jax.pareto(draw_case(0)[0], **changes)


def test_a_latency_curve_needs_a_table():
  network, choices = two_layers()
  result = make_result(network, choices, equal_scores(network, (2, 4)))
  with pytest.raises(ValueError, match=r"'latency'.*asga_jax\.latency"):
    asga_jax.pareto(result, cost="latency")
