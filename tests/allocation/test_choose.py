"""Bits chosen within budgets, against brute force and by hand."""

import time

import numpy as np
import pytest
from allocation.cases import (
  draw_case,
  draw_scores,
  make_instance,
  resnet18,
  search_choices,
)

from asga_jax import policy as policy_lib
from asga_jax.allocation import choose as allocation
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import latency_table

FORMS = (
  "bops=4bit",
  "bops=0.09M",
  "bops<=2%",
  "size=4bit",
  "size=0.9KB",
  "size=11%",
  "latency=4bit",
  "latency=2.5ms",
  "latency=9%",
  "energy=40",
  "bops=4bit,size=0.9KB",
  "bops=3bit, size<=12%, latency=2.5ms",
)


@pytest.mark.parametrize(
  "draws",
  [
    pytest.param(range(30), id="few"),
    pytest.param(range(30, 200), id="many", marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize("form", FORMS)
def test_equals_brute_force(form, draws):
  budget = budget_lib.parse_budget(form)
  outcomes = {"full": 0, "below": 0, "infeasible": 0}
  # Costs that differ do so by more than this share; equal ones by less.
  slack = 1e-12
  for draw in draws:
    network, choices, scores, costs, everything = draw_case(draw)
    policies, amounts, totals = everything
    limits = budget_lib.resolve(budget, network, choices, costs)
    use = np.max([amounts[n] / limit for n, limit in limits.items()], axis=0)
    within = use <= 1 + slack
    if not within.any():
      outcomes["infeasible"] += 1
      with pytest.raises(budget_lib.InfeasibleBudgetError):
        allocation.allocate_bits(network, choices, *scores, costs, limits)
      with pytest.raises(budget_lib.InfeasibleBudgetError):
        allocation.check_feasible(network, choices, costs, limits)
      continue
    if draw % 10 == 0:
      allocation.check_feasible(network, choices, costs, limits)
    fullest = use[within].max()
    outcomes["full" if fullest >= 0.98 - slack else "below"] += 1
    allowed = within & (use >= min(0.98, fullest) - slack)
    result = allocation.allocate_bits(network, choices, *scores, costs, limits)
    index = policies.index(result)
    # Within every limit, and of at least 98 % use where that can be had.
    assert allowed[index], (draw, result, use[index], fullest)
    assert totals[index] == pytest.approx(totals[allowed].max(), abs=1e-7)
  assert outcomes["full"] > 0, outcomes
  if form in ("bops=0.09M", "size=0.9KB", "latency=2.5ms"):
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.parametrize("tied", [False, True], ids=["free", "tied"])
@pytest.mark.parametrize(
  "form",
  [
    "bops=4bit",
    "bops=34.7G",
    "bops=2%",
    "size=6MB",
    "size=4bit",
    "latency=3.1ms",
    "bops=4bit,size=5MB",
  ],
)
def test_resnet18_stays_within_the_budget_and_uses_it(form, tied):
  network = resnet18()
  choices = search_choices(network, tied=tied)
  table = {
    (layer.path, bw, ba): layer.macs * (bw + ba) / 5e9 + 0.011
    for layer in network.layers
    for bw in (2, 3, 4, 5, 6, 8)
    for ba in (2, 3, 4, 5, 6, 8)
  }
  costs = (costs_lib.BOPS, costs_lib.SIZE, latency_table.latency_cost(table))
  budget = budget_lib.parse_budget(form)
  limits = budget_lib.resolve(budget, network, choices, costs)
  rng = np.random.default_rng(0)
  for draw in range(3):
    weight, activation = draw_scores(rng, choices)
    # As after a search whose penalty pushed the logits down, or up.
    slope = (draw % 3 - 1) * np.arange(6.0)
    for values in (*weight.values(), *activation.values()):
      values += slope[: len(values)]
    bits = allocation.allocate_bits(
      network, choices, weight, activation, costs, limits
    )
    used = {
      cost.name: costs_lib.total_cost(network, bits, cost)
      for cost in costs
      if cost.name in limits
    }
    assert all(used[name] <= limit for name, limit in limits.items())
    assert budget_lib.budget_used(used, limits) >= 0.98
    if tied:
      for path in network.paths:
        if path.endswith("shortcut"):
          conv = path.replace("shortcut", "conv1")
          assert bits[path][1] == bits[conv][1]


def two_layers(bits=(2, 4)):
  network = costs_lib.NetworkStats(
    (costs_lib.LayerStats("a", 100, 10), costs_lib.LayerStats("b", 300, 20)), 0
  )
  choice = policy_lib.LayerChoice(bits, bits, searched=True)
  return network, {"a": choice, "b": choice}


def test_limit_equal_to_a_reachable_cost_is_reachable():
  network, choices = two_layers()
  scores = {"a": [0.0, 5.0], "b": [1.0, 0.0]}
  # a at 4/4, b at 2/2: the mode, whose cost is the limit exactly.
  limit = 100 * 16 + 300 * 4
  arguments = network, choices, scores, scores, [costs_lib.BOPS]
  bits = allocation.allocate_bits(*arguments, {"bops": limit})
  assert bits == {"a": (4, 4), "b": (2, 2)}
  lower = allocation.allocate_bits(*arguments, {"bops": limit - 1})
  assert costs_lib.total_cost(network, lower, costs_lib.BOPS) < limit


def test_budget_above_the_most_expensive_policy_takes_that_policy():
  network, choices = two_layers()
  scores = {"a": [9.0, 0.0], "b": [9.0, 0.0]}
  bits = allocation.allocate_bits(
    network, choices, scores, scores, [costs_lib.BOPS], {"bops": 10**9}
  )
  assert bits == {"a": (4, 4), "b": (4, 4)}


def test_one_candidate_needs_no_scores():
  network, choices = two_layers(bits=(4,))
  bits = allocation.allocate_bits(
    network, choices, {}, {}, [costs_lib.SIZE], {"size": 120}
  )
  assert bits == {"a": (4, 4), "b": (4, 4)}


def test_cost_of_zero():
  network, choices = two_layers()
  scores = {"a": [0.0, 1.0], "b": [1.0, 0.0]}
  free = costs_lib.Cost("free", lambda layer, bw, ba: 0)
  bits = allocation.allocate_bits(
    network, choices, scores, scores, [free], {"free": 1}
  )
  assert bits == {"a": (4, 4), "b": (2, 2)}


def test_min_use_is_what_makes_low_bits_lose():
  network, choices = two_layers()
  scores = {"a": [9.0, 0.0], "b": [9.0, 0.0]}
  arguments = network, choices, scores, scores, [costs_lib.BOPS]
  limits = {"bops": 400 * 8}
  low = allocation.allocate_bits(*arguments, limits, min_use=0.0)
  assert low == {"a": (2, 2), "b": (2, 2)}
  high = allocation.allocate_bits(*arguments, limits)
  # 3200 = 1600 + 4 * 400 is out of reach; 100*8 + 300*8 is 3200 exactly.
  assert costs_lib.total_cost(network, high, costs_lib.BOPS) == 3200


def test_scale_of_the_scores_does_not_matter():
  rng = np.random.default_rng(3)
  network, choices, _ = make_instance(rng)
  costs = [costs_lib.BOPS]
  weight, activation = draw_scores(rng, choices)
  limits = budget_lib.resolve(
    budget_lib.parse_budget("bops=8bit"), network, choices, costs
  )
  results = [
    allocation.allocate_bits(
      network,
      choices,
      {key: scale * values + 7 * scale for key, values in weight.items()},
      {key: scale * values for key, values in activation.items()},
      costs,
      limits,
    )
    for scale in (1.0, 1e-9, 1e9)
  ]
  assert results[0] == results[1] == results[2]


def test_equal_scores_are_deterministic_whatever_the_order_of_the_mappings():
  network = resnet18()
  choices = search_choices(network, tied=True)
  weight = {
    choice.weight_key(path): np.zeros(len(choice.weight_bits))
    for path, choice in choices.items()
  }
  activation = {
    choice.activation_key(path): np.zeros(len(choice.activation_bits))
    for path, choice in choices.items()
  }
  limits = budget_lib.resolve(
    budget_lib.parse_budget("bops=4bit"), network, choices, [costs_lib.BOPS]
  )

  def reverse(mapping):
    return dict(reversed(mapping.items()))

  results = [
    allocation.allocate_bits(network, c, w, a, [costs_lib.BOPS], limits)
    for c, w, a in (
      (choices, weight, activation),
      (choices, weight, activation),
      (reverse(choices), reverse(weight), reverse(activation)),
    )
  ]
  assert list(results[0].items()) == list(results[1].items())
  assert list(results[0].items()) == list(results[2].items())


def test_infeasible_names_limit_and_lowest_cost():
  network, choices = two_layers()
  scores = {"a": [0.0, 0.0], "b": [0.0, 0.0]}
  message = r"bops <= 1\.5 KBOPs \(lowest reachable: 1\.6 KBOPs\)"
  with pytest.raises(budget_lib.InfeasibleBudgetError, match=message):
    allocation.allocate_bits(
      network, choices, scores, scores, [costs_lib.BOPS], {"bops": 1500}
    )
  with pytest.raises(budget_lib.InfeasibleBudgetError, match=message):
    allocation.check_feasible(
      network, choices, [costs_lib.BOPS], {"bops": 1500}
    )
  allocation.check_feasible(network, choices, [costs_lib.BOPS], {"bops": 1600})


def test_jointly_infeasible():
  network, choices = two_layers()
  # Cheap where size is dear: 2 bits cost much, 4 bits little.
  inverse = costs_lib.Cost("inverse", lambda layer, bw, ba: 10 - bw)
  costs = [costs_lib.SIZE, inverse]
  limits = {"size": 60, "inverse": 12}
  for name, limit in limits.items():
    allocation.check_feasible(network, choices, costs, {name: limit})
  message = r"each budget can be met alone.*size <= 7\.5 B.*inverse <= 12"
  with pytest.raises(budget_lib.InfeasibleBudgetError, match=message):
    allocation.check_feasible(network, choices, costs, limits)


@pytest.mark.parametrize(
  ("weight", "message"),
  [
    ({"a": [0.0, np.nan], "b": [0.0, 0.0]}, r"weight_scores\['a'\]"),
    ({"a": [0.0, 0.0], "b": [0.0, -np.inf]}, r"weight_scores\['b'\]"),
    ({"a": [0.0, 0.0]}, r"weight_scores\['b'\] = None"),
    ({"a": [0.0], "b": [0.0, 0.0]}, r"weight_scores\['a'\]"),
    ({"a": [0.0, 0.0], "b": [0.0, 0.0], "c": [0.0, 0.0]}, r"\['c'\]"),
  ],
)
def test_bad_scores(weight, message):
  network, choices = two_layers()
  good = {"a": [0.0, 0.0], "b": [0.0, 0.0]}
  with pytest.raises(ValueError, match=message):
    allocation.allocate_bits(
      network, choices, weight, good, [costs_lib.BOPS], {"bops": 5000}
    )


@pytest.mark.parametrize(
  ("limits", "min_use", "message"),
  [
    ({}, 0.98, "limits = {}"),
    ({"size": 100}, 0.98, "limits = {'size': 100}.*bops"),
    ({"bops": 0}, 0.98, "limit of bops = 0"),
    ({"bops": float("nan")}, 0.98, "limit of bops = nan"),
    ({"bops": 5000}, 1.5, "min_use = 1.5"),
    ({"bops": 5000}, float("nan"), "min_use = nan"),
  ],
)
def test_bad_arguments(limits, min_use, message):
  network, choices = two_layers()
  scores = {"a": [0.0, 0.0], "b": [0.0, 0.0]}
  with pytest.raises(ValueError, match=message):
    allocation.allocate_bits(
      network,
      choices,
      scores,
      scores,
      [costs_lib.BOPS],
      limits,
      min_use=min_use,
    )


def test_54_layers_are_fast():
  rng = np.random.default_rng(0)
  network = costs_lib.NetworkStats(
    tuple(
      costs_lib.LayerStats(f"layer/{i}", int(macs), int(macs) // 196)
      for i, macs in enumerate(rng.choice((51380224, 115605504, 12845056), 54))
    ),
    0,
  )
  choices = search_choices(network)
  weight, activation = draw_scores(rng, choices)
  limits = budget_lib.resolve(
    budget_lib.parse_budget("bops=4bit"), network, choices, [costs_lib.BOPS]
  )
  start = time.perf_counter()
  allocation.allocate_bits(
    network, choices, weight, activation, [costs_lib.BOPS], limits
  )
  # 0.05 to 0.3 s on two free cores; busy ones must not fail the test.
  assert time.perf_counter() - start < 10
