"""Three budgets at once over tied layers, against brute force and HiGHS."""

import functools
import itertools
import time

import numpy as np
import pytest
from allocation import cases
from scipy import optimize

import asga_jax
from asga_jax import policy as policy_lib
from asga_jax.allocation import choose as allocation
from asga_jax.allocation import program as pair_program
from asga_jax.allocation import solver as pair_solver
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib

NAMES = ("bops", "size", "latency")


@pytest.fixture(params=["whole", "core"])
def solver(request, monkeypatch):
  """Small programs are solved whole; here also as large ones are."""
  if request.param == "core":
    monkeypatch.setattr(pair_solver, "_FEW", 0)


@functools.cache
def draw_case(seed):
  """Tied layers, and limits of which several bind or cannot be met at once."""
  rng = np.random.default_rng([seed, 1])
  network, choices, latencies = cases.make_instance(rng)
  # In tenths, and not higher for more bits: budgets contradict each other.
  latencies = {key: int(rng.integers(1, 60)) for key in latencies}
  choices = {
    path: policy_lib.LayerChoice(
      choice.weight_bits,
      choice.activation_bits,
      searched=choice.searched,
      weight_group=choice.weight_group,
      # At least two share the bits of their input.
      activation_group="a" if len(choice.activation_bits) > 1 else "",
    )
    for path, choice in choices.items()
  }
  scores = cases.draw_scores(rng, choices, integers=seed % 3 == 0)
  everything = cases.enumerate_policies(network, choices, latencies, *scores)
  amounts = everything[1]
  limits = {}
  for name in NAMES:
    # The cost of some cheap policy, or somewhat more.
    quantile = np.quantile(amounts[name], rng.random() ** 2, method="lower")
    limit = quantile * rng.choice((1.0, 1.0, 1.03))
    limits[name] = int(limit) if name != "latency" else round(float(limit), 2)
  return (
    network,
    choices,
    scores,
    cases.make_costs(latencies),
    everything,
    limits,
  )


@pytest.mark.parametrize("min_use", [0.0, 0.9, 0.98])
@pytest.mark.usefixtures("solver")
def test_equals_brute_force(min_use):
  slack = 1e-12
  outcomes = {"infeasible": 0, "met": 0, "several bind": 0}
  for seed in range(60):
    network, choices, scores, costs, everything, limits = draw_case(seed)
    policies, amounts, totals = everything
    uses = np.array([amounts[name] / limits[name] for name in NAMES])
    within = (uses <= 1 + slack).all(axis=0)
    arguments = network, choices, *scores, costs, limits
    if not within.any():
      outcomes["infeasible"] += 1
      with pytest.raises(budget_lib.InfeasibleBudgetError) as caught:
        allocation.allocate_bits(*arguments, min_use=min_use)
      alone = (uses.min(axis=1) <= 1 + slack).all()
      assert ("meets them together" in str(caught.value)) == alone
      continue
    use = uses.max(axis=0)
    outcomes["met"] += 1
    outcomes["several bind"] += not any(
      totals[within].max() == totals[one <= 1 + slack].max() for one in uses
    )
    allowed = within & (use >= min(min_use, use[within].max()) - slack)
    bits = allocation.allocate_bits(*arguments, min_use=min_use)
    index = policies.index(bits)
    assert allowed[index], (seed, bits)
    assert totals[index] == pytest.approx(totals[allowed].max(), abs=1e-7)
  assert min(outcomes.values()) > 3, outcomes


def resnet50():
  """Layers of ResNet-50 v1.5 at 224x224 and 1000 classes, by hand."""
  layers = [("stem", 112, 7, 3, 64)]
  before, before_size = 64, 56
  for stage, (size, width, depth) in enumerate(
    ((56, 64, 3), (28, 128, 4), (14, 256, 6), (7, 512, 3))
  ):
    for block in range(depth):
      path = f"stages/{stage}/{block}"
      layers.append((f"{path}/conv1", before_size, 1, before, width))
      layers.append((f"{path}/conv2", size, 3, width, width))
      layers.append((f"{path}/conv3", size, 1, width, 4 * width))
      if block == 0:
        layers.append((f"{path}/shortcut", size, 1, before, 4 * width))
      before, before_size = 4 * width, size
  layers.append(("head", 1, 1, 2048, 1000))
  return costs_lib.NetworkStats(
    tuple(
      costs_lib.LayerStats(path, size * size * k * k * i * o, k * k * i * o)
      for path, size, k, i, o in layers
    ),
    float_parameters=4 * 26560 + 1000,
  )


def draw_large(seed, tied=True):
  """ResNet-50 with six candidates of each, scores that rise with the bits."""
  rng = np.random.default_rng(seed)
  network = resnet50()
  choices = cases.search_choices(network, tied=tied)
  scores = cases.draw_scores(rng, choices)
  for kind in scores:
    for key, values in kind.items():
      kind[key] = np.sort(np.abs(values)) * rng.lognormal()
  bits = (2, 3, 4, 5, 6, 8)
  table = {
    (layer.path, bw, ba): round(
      0.01 + layer.macs * (bw + ba) / 5e9 * rng.uniform(0.7, 1.3), 6
    )
    for layer in network.layers
    for bw, ba in itertools.product(bits, repeat=2)
  }
  costs = (costs_lib.BOPS, costs_lib.SIZE, asga_jax.latency_cost(table))
  budget = budget_lib.parse_budget("bops=4bit,size=4bit,latency=4bit")
  limits = budget_lib.resolve(budget, network, choices, costs)
  return network, choices, scores, costs, limits


def reference_score(network, choices, scores, costs, limits):
  """Solve another program: bits of groups choose, pairs follow them."""
  columns = {}
  objective = []
  for kind, (field, values) in enumerate(
    zip(("weight", "activation"), scores, strict=True)
  ):
    for path, choice in choices.items():
      key = getattr(choice, f"{field}_key")(path)
      for bits, score in zip(
        getattr(choice, f"{field}_bits"), values[key], strict=True
      ):
        if (kind, key, bits) not in columns:
          columns[kind, key, bits] = len(objective)
          objective.append(-score)
  pairs = {}
  for path, choice in choices.items():
    for pair in itertools.product(choice.weight_bits, choice.activation_bits):
      pairs[path, pair] = len(objective)
      objective.append(0.0)
  rows, lows, highs = [], [], []

  def add(entries, low, high):
    row = np.zeros(len(objective))
    for column, value in entries:
      row[column] += value
    rows.append(row)
    lows.append(low)
    highs.append(high)

  for kind, key in dict.fromkeys(column[:2] for column in columns):
    add([(i, 1) for c, i in columns.items() if c[:2] == (kind, key)], 1, 1)
  for path, choice in choices.items():
    for kind, key in enumerate(
      (choice.weight_key(path), choice.activation_key(path))
    ):
      for bits in (choice.weight_bits, choice.activation_bits)[kind]:
        own = [
          (i, 1) for (p, b), i in pairs.items() if (p, b[kind]) == (path, bits)
        ]
        add([*own, (columns[kind, key, bits], -1)], 0, 0)
  for cost in costs:
    limit = limits[cost.name]
    entries = [
      (i, 1e4 * cost.layer_cost(layer, *b) / limit)
      for layer in network.layers
      for (p, b), i in pairs.items()
      if p == layer.path
    ]
    add(entries, -np.inf, 1e4 * (1 - cost.constant(network) / limit))
  found = optimize.milp(
    np.array(objective),
    integrality=np.ones(len(objective)),
    bounds=optimize.Bounds(0, 1),
    constraints=optimize.LinearConstraint(np.array(rows), lows, highs),
    options={"mip_rel_gap": 0},
  )
  assert found.success
  return -found.fun


def score_of(choices, scores, bits):
  terms = {}
  for path, choice in choices.items():
    for kind, key, candidates in (
      (0, choice.weight_key(path), choice.weight_bits),
      (1, choice.activation_key(path), choice.activation_bits),
    ):
      terms[kind, key] = scores[kind][key][candidates.index(bits[path][kind])]
  return sum(terms.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_resnet50_equals_another_integer_program(seed):
  network, choices, scores, costs, limits = draw_large(seed)
  bits = allocation.allocate_bits(
    network, choices, *scores, costs, limits, min_use=0.0
  )
  expected = reference_score(network, choices, scores, costs, limits)
  assert score_of(choices, scores, bits) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tied", [False, True], ids=["free", "tied"])
def test_resnet50_takes_less_than_two_seconds(tied):
  network, choices, scores, costs, limits = draw_large(5, tied)
  assert len(network.layers) == 54
  assert sum(x.macs for x in network.layers) == 4_089_184_256
  # Of the processor, so that other work on it does not count.
  start = time.process_time()
  allocation.allocate_bits(network, choices, *scores, costs, limits)
  assert time.process_time() - start < 2


@pytest.mark.usefixtures("solver")
def test_solutions_that_score_no_more_may_be_left_out():
  network, choices, scores, costs, *_ = draw_case(1)
  program = pair_program.build(network, choices, costs)
  vector = allocation.score_vector(program, *scores)
  best = pair_solver.solve(program, vector, {})
  total = vector[list(best)].sum()
  assert pair_solver.solve(program, vector, {}, above=total - 0.01) == best
  high = pair_solver.solve(program, vector, {}, above=total + 0.01)
  assert high is None or vector[list(high)].sum() == pytest.approx(total)
