"""What a search leaves: scores, and policies within any budget."""

import dataclasses
import itertools
import math
from importlib import metadata

import numpy as np
import pytest

import asga_jax
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.allocation import space as search_space
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import latency_table
from asga_jax.training import search_settings

LATENCY = {
  (path, bw, ba): 0.1 * index + 0.02 * bw + 0.01 * ba
  for index, path in enumerate(("first", "middle", "inner", "head"))
  for bw in (2, 4, 8, 32)
  for ba in (2, 4, 8, 32)
}
ENERGY = costs_lib.Cost("energy", lambda layer, bw, ba: layer.macs * (bw + ba))
BUDGETS = (
  "bops=4bit",
  "bops<=3bit",
  "bops=250K",
  "bops=12%",
  "size=4bit",
  "size=0.31KB",
  "size=30%",
  "latency=1.3ms",
  "bops=4bit,size=4bit",
  "bops=5bit, latency<=1250us",
  "energy=4bit",
  "container_size=0.33KB,energy=90%",
  "energy=60K,latency=1.3ms,size=35%",
)


@pytest.fixture(scope="module")
def random_result(tiny_searchable):
  """A function from a seed to a result with scores drawn at random."""
  network, shape = tiny_searchable.deployed_network
  space = search_space.build(tiny_searchable, network)

  def make(seed):
    random = np.random.default_rng(seed)
    sizes = {}
    for choice in space.choices.values():
      sizes[choice.weight_group] = len(choice.weight_bits)
      sizes[choice.activation_group] = len(choice.activation_bits)
    scores = {
      name: {g: random.normal(size=n) * 3 for g, n in sizes.items()}
      for name in search_settings.SCORES
    }
    return result_lib.SearchResult(
      model=tiny_searchable,
      space=space,
      scores=scores,
      budget="bops=4bit",
      costs=(latency_table.latency_cost(LATENCY), ENERGY),
      input_shape=shape,
      provenance={"seed": seed},
    )

  return make


@pytest.fixture(scope="module")
def every_policy(random_result):
  """Bits, groups' candidates and costs by name of every policy there is."""
  result = random_result(0)
  space = result.space
  costs = search_space.known_costs(result.costs)
  found = []
  options = [
    [
      ((bw, ba), (c.weight_group, i), (c.activation_group, j))
      for i, bw in enumerate(c.weight_bits)
      for j, ba in enumerate(c.activation_bits)
    ]
    for c in space.choices.values()
  ]
  for picks in itertools.product(*options):
    bits = dict(zip(space.choices, (p[0] for p in picks), strict=True))
    amounts = {
      cost.name: costs_lib.total_cost(space.network, bits, cost)
      for cost in costs
    }
    found.append((bits, [pair for p in picks for pair in p[1:]], amounts))
  return found


@pytest.mark.parametrize("text", BUDGETS)
def test_policies_stay_within_every_budget_and_are_the_best(
  random_result, every_policy, text
):
  """Twenty random scores a budget form, 200 in all, against brute force."""
  for seed in range(10):
    for score in search_settings.SCORES:
      result = random_result(seed)
      policy = asga_jax.allocate(result, budget=text, score=score)
      limits = budget_lib.resolve(
        budget_lib.parse_budget(text),
        result.space.network,
        result.space.choices,
        search_space.known_costs(result.costs),
      )
      found = {
        path: (layer.weight_bits, layer.activation_bits)
        for path, layer in policy.layers.items()
      }
      scores = result.scores[score]
      within = [
        (
          bits,
          sum(scores[group][index] for group, index in chosen),
          max(amounts[n] / x for n, x in limits.items()),
        )
        for bits, chosen, amounts in every_policy
        if all(amounts[name] <= limit for name, limit in limits.items())
      ]
      full = [entry for entry in within if entry[2] >= 0.98]
      if not full:
        most = max(use for *_, use in within)
        full = [entry for entry in within if entry[2] == most]
      best = max(full, key=lambda entry: entry[1])
      mine = next(entry for entry in within if entry[0] == found)
      assert mine in full
      assert mine[1] == pytest.approx(best[1], abs=1e-9)
      assert policy.cost["budget_used"] == pytest.approx(mine[2], abs=1e-12)
      assert policy.cost["budget_used"] <= 1


def test_an_infeasible_budget_names_the_lowest_cost(
  random_result, every_policy
):
  result = random_result(0)
  lowest = min(amounts["bops"] for *_, amounts in every_policy)
  with pytest.raises(budget_lib.InfeasibleBudgetError) as caught:
    asga_jax.allocate(result, budget="bops=1K")
  shown = costs_lib.format_amount("bops", lowest)
  assert f"lowest reachable: {shown}" in str(caught.value)


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"score": "entropy"}, "entropy"),
    ({"budget": "bops"}, "bops"),
    ({"budget": "bops=4bits4"}, "4bits4"),
    ({"budget": "power=3"}, r"'power=3'.*container_size.*Cost named 'power'"),
    ({"min_use": 1.5}, "1.5"),
  ],
)
def test_bad_arguments_are_named(random_result, changes, named):
  with pytest.raises(ValueError, match=named):
    asga_jax.allocate(random_result(0), **changes)


def test_scores_of_three_candidates_by_hand():
  logits = {"a": np.log([0.2, 0.5, 0.3]).astype(np.float32) + 7}
  slopes = {"a": np.array([6.0, -3.0, 0.0], np.float32)}
  widths = {"a": (2, 8, 4)}
  scores = result_lib.make_scores(logits, slopes, 3, widths)
  np.testing.assert_allclose(
    scores["log_prob"]["a"], np.log([0.2, 0.5, 0.3]), rtol=1e-5
  )
  # A candidate whose share would lower the loss scores high.
  np.testing.assert_array_equal(scores["first_order"]["a"], [-2.0, 1.0, 0.0])
  assert scores["log_prob"]["a"].dtype == np.float64


def test_scores_of_no_step_are_finite():
  scores = result_lib.make_scores({}, {"a": np.zeros(2)}, 0, {"a": (2, 4)})
  np.testing.assert_array_equal(scores["first_order"]["a"], [0.0, 0.0])
  np.testing.assert_array_equal(scores["noise_power"]["a"], [0.0, 0.0])


def test_noise_power_is_the_nearest_of_its_form():
  widths = {
    "law": (4, 2, 8, 3),
    "noisy": (2, 3, 4),
    "rising": (2, 8),
    "1": (4,),
  }
  power = {g: 4.0 ** -np.array(bits, float) for g, bits in widths.items()}
  slopes = {
    "law": 3 * power["law"] - 1.0,
    "noisy": np.array([0.5, -0.2, -0.3]),
    # More bits that seem worse are no worse.
    "rising": np.array([-1.0, 1.0]),
    "1": np.zeros(1),
  }
  found = result_lib.make_scores({}, slopes, 1, widths)["noise_power"]
  np.testing.assert_allclose(found["law"], -3 * power["law"])
  design = np.stack([np.ones(3), -power["noisy"]], axis=1)
  fitted = np.linalg.lstsq(design, -slopes["noisy"], rcond=None)[0][1]
  np.testing.assert_allclose(found["noisy"], -fitted * power["noisy"])
  np.testing.assert_array_equal(found["rising"], [0.0, 0.0])
  np.testing.assert_array_equal(found["1"], [0.0])


def test_the_policy_says_where_it_comes_from(random_result):
  result = dataclasses.replace(random_result(3), model_name="tiny")
  policy = asga_jax.allocate(result, budget="bops<=4bits", score="first_order")
  assert policy.model == "tiny"
  assert policy.input_shape == (8, 8, 1)
  assert policy.budget == "bops=4bit"
  assert policy.provenance == {"seed": 3, "score": "first_order"}
  assert [policy.layers[p].searched for p in ("first", "middle")] == [
    False,
    True,
  ]
  bops = sum(
    layer.macs * layer.weight_bits * layer.activation_bits
    for layer in policy.layers.values()
  )
  assert policy.cost["bops"] == bops
  # Packed weight bits; biases and norm (4 scales, biases, means, variances)
  # stay float32.
  bits = sum(x.weights * x.weight_bits for x in policy.layers.values())
  floats = 4 + 6 + 5 + 3 + 4 * 4
  assert policy.cost["size_bytes"] == math.ceil((bits + 32 * floats) / 8)
  assert policy_lib.from_json(policy_lib.to_json(policy)) == policy


def test_versions_are_those_installed():
  assert result_lib.versions()["jax"] == metadata.version("jax")
  assert set(result_lib.versions()) >= {"jax", "flax", "optax", "asga-jax"}


def test_a_package_that_is_not_installed_does_not_end_a_search(monkeypatch):
  monkeypatch.setattr(result_lib, "VERSIONED", ("jax", "no-such-package"))
  assert result_lib.versions() == {
    "jax": metadata.version("jax"),
    "no-such-package": "unknown",
  }


def test_a_format_of_other_containers_takes_the_place_of_the_default(
  random_result,
):
  result = random_result(1)
  only = dataclasses.replace(result, costs=(costs_lib.container_cost((8, 32)),))
  floats = 4 + 6 + 5 + 3 + 4 * 4
  weights = sum(layer.weights for layer in result.space.network.layers)
  policy = asga_jax.allocate(only, budget="bops=3bit")
  assert policy.cost["container_size_bytes"] == weights + 4 * floats
  with pytest.raises(budget_lib.InfeasibleBudgetError, match="container_size"):
    asga_jax.allocate(only, budget="container_size=300B")
  # Those of 2, 4 and 8 bits hold all candidates without loss.
  policy = asga_jax.allocate(result, budget="container_size=3bit")
  assert policy.cost["container_size_bytes"] == policy.cost["size_bytes"]
  assert policy.cost["budget_used"] <= 1


def test_uniform_bits_within_a_budget_are_a_policy(random_result):
  result = random_result(1)
  at_four = result_lib.uniform_policy(result)
  assert at_four.budget == "bops=4bit"
  assert at_four.cost["budget_used"] == 1
  assert at_four.provenance == {"seed": 1, "method": "uniform"}
  bits = {
    path: (layer.weight_bits, layer.activation_bits)
    for path, layer in at_four.layers.items()
  }
  fours, eights = (4, 4), (8, 8)
  assert bits == {
    "first": eights,
    "middle": fours,
    "inner": fours,
    "head": eights,
  }
  between = result_lib.uniform_policy(result, budget="bops=9%")
  assert 0 < between.cost["budget_used"] <= 1
  with pytest.raises(budget_lib.InfeasibleBudgetError, match="lowest"):
    result_lib.uniform_policy(result, budget="bops=1K")
