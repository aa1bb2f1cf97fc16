import decimal

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from asga_jax import policy as policy_lib
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import latency_table


def make_network():
  network = costs_lib.NetworkStats(
    (
      costs_lib.LayerStats("a", 100, 10),
      costs_lib.LayerStats("b", 300, 20),
    ),
    float_parameters=3,
  )
  choices = {
    "a": policy_lib.LayerChoice((8,), (8,), searched=False),
    "b": policy_lib.LayerChoice((2, 8), (2, 8), searched=True),
  }
  return network, choices


LATENCY = latency_table.latency_cost(
  {
    (path, bits, bits): ms * bits
    for path, ms in (("a", 0.1), ("b", 0.3))
    for bits in (2, 4, 8, 32)
  }
)
ENERGY = costs_lib.Cost("energy", lambda layer, bw, ba: layer.macs * bw)


@pytest.mark.parametrize(
  ("text", "limit"),
  [
    # a stays at its own 8/8; 4 is no candidate of b, and still a cost.
    ("bops=4bit", 100 * 64 + 300 * 16),
    ("bops<=4bits", 100 * 64 + 300 * 16),
    ("bops=25000", 25000),
    ("bops=25K", 25000),
    ("bops=0.025M", 25000),
    ("bops = 34.7G", 34_700_000_000),
    ("bops=1.5T", 1_500_000_000_000),
    ("bops=2%", 400 * 1024 // 50),
    ("size=6MB", 48_000_000),
    ("size=.5KB", 4000),
    ("size=1GB", 8_000_000_000),
    ("size=77B", 77 * 8),
    ("size=4bit", 10 * 8 + 20 * 4 + 3 * 32),
    ("size=10%", 33 * 32 / 10),
    ("container_size=6MB", 48_000_000),
    ("container_size=3bit", 10 * 8 + 20 * 4 + 3 * 32),
    # Between whole bits: BOPs as their product, sizes as their mean.
    ("bops=2.5bit", 100 * 64 + 300 * 2.5**2),
    ("bops=2.25bit", 100 * 64 + 300 * 2.25**2),
    ("size=3.25bit", 10 * 8 + 20 * 3.25 + 3 * 32),
    # In containers of 2 and of 4 bits.
    ("container_size=2.5bit", 10 * 8 + 20 * 3 + 3 * 32),
    ("latency=3.1ms", 3.1),
    ("latency=3100us", 3.1),
    ("latency=0.0031s", 3.1),
    ("latency=4bit", 0.1 * 8 + 0.3 * 4),
    ("latency=50%", 6.4),
    ("energy=3bit", 100 * 8 + 300 * 3),
    ("energy=1.5K", 1500),
    ("energy=0.25", 0.25),
  ],
)
def test_every_form_resolves(text, limit):
  network, choices = make_network()
  budget = budget_lib.parse_budget(text)
  limits = budget_lib.resolve(
    budget,
    network,
    choices,
    [
      costs_lib.BOPS,
      costs_lib.SIZE,
      costs_lib.CONTAINER_SIZE,
      LATENCY,
      ENERGY,
    ],
  )
  (resolved,) = limits.values()
  assert resolved == limit
  # Whole limits stay exact integers, so that a cost can equal them.
  assert isinstance(resolved, int) == (limit == int(limit)) or "lat" in text


def test_a_limit_in_bits_equals_the_cost_of_these_bits():
  network, choices = make_network()
  for cost in (costs_lib.BOPS, costs_lib.SIZE, LATENCY, ENERGY):
    limits = budget_lib.resolve(
      budget_lib.parse_budget(f"{cost.name}=2bit"), network, choices, [cost]
    )
    bits = {"a": (8, 8), "b": (2, 2)}
    total = costs_lib.total_cost(network, bits, cost)
    assert limits == {cost.name: total}
    assert budget_lib.budget_used({cost.name: total}, limits) == 1.0


def test_several_budgets():
  network, choices = make_network()
  budget = budget_lib.parse_budget(" bops=4bit , size<=6.50MB,latency=3ms")
  assert str(budget) == "bops=4bit,size=6.5MB,latency=3ms"
  limits = budget_lib.resolve(
    budget, network, choices, [LATENCY, costs_lib.SIZE, costs_lib.BOPS]
  )
  assert limits == {"bops": 11200, "size": 52_000_000, "latency": 3}
  used = budget_lib.budget_used(
    {"bops": 5600, "size": 39_000_000, "latency": 0.3}, limits
  )
  assert used == 0.75


@hypothesis.given(
  strategies.lists(
    strategies.tuples(
      strategies.sampled_from(
        [
          ("bops", ["", "K", "M", "G", "T", "%", "bit"]),
          ("size", ["B", "KB", "MB", "GB", "%", "bit"]),
          ("latency", ["us", "ms", "s", "%", "bit"]),
          ("energy_2", ["", "K", "M", "G", "T", "%", "bit"]),
        ]
      ),
      strategies.integers(0, 6),
      strategies.decimals("0.001", 10**9, places=3),
      strategies.integers(1, 32),
      strategies.sampled_from(["=", "<=", " = ", "<= "]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda item: item[0][0],
  )
)
def test_canonical_text_reads_as_the_same_budget(items):
  expected = []
  parts = []
  for (kind, units), index, amount, bits, sign in items:
    unit = units[index % len(units)]
    amount = decimal.Decimal(bits) if unit == "bit" else amount
    parts.append(f"{kind}{sign}{amount:f}{unit}")
    expected.append((kind, amount, unit))
  budget = budget_lib.parse_budget(" ,".join(parts))
  read = [(c.kind, c.amount, c.unit) for c in budget.constraints]
  assert read == expected
  canonical = str(budget)
  assert " " not in canonical
  assert "<" not in canonical
  assert budget_lib.parse_budget(canonical) == budget
  assert str(budget_lib.parse_budget(canonical)) == canonical


@pytest.mark.parametrize(
  "text",
  [
    "",
    "bops",
    "bops=",
    "=4bit",
    "4bit",
    "bops==4bit",
    "bops>=4bit",
    "bops=4bit,",
    "bops=4bit;size=6MB",
    "bops=-3G",
    "bops=0G",
    "bops=0%",
    "bops=1e9",
    "bops=nan",
    "bops=inf",
    "bops=34.7GB",
    "bops=0.5bit",
    "bops=32.5bit",
    "bops=0bit",
    "bops=33bit",
    "bops=1.2.3G",
    "size=6",
    "size=6M",
    "size=6Mb",
    "size=6MiB",
    "latency=3",
    "latency=3G",
    "energy=3ms",
    "bops=\uff14bit",
  ],
)
def test_malformed_budgets_name_the_text_and_the_forms(text):
  with pytest.raises(ValueError, match=r"bops=4bit, bops=34\.7G") as error:
    budget_lib.parse_budget(text)
  assert f"budget {text!r}" in str(error.value)


def test_a_kind_twice():
  with pytest.raises(ValueError, match="'bops' occurs twice"):
    budget_lib.parse_budget("bops=4bit,size=6MB,bops=3bit")


def test_a_kind_without_its_cost_says_what_to_supply():
  network, choices = make_network()
  costs = [costs_lib.BOPS, costs_lib.SIZE]
  for text, message in (
    ("latency=3ms", r"latency table.*latency_table=FILE.*load_latency"),
    ("energy=3", "a Cost named 'energy'"),
    ("BOPs=4bit", r"\['bops', 'size'\]"),
  ):
    budget = budget_lib.parse_budget(text)
    with pytest.raises(ValueError, match=message):
      budget_lib.resolve(budget, network, choices, costs)


def test_a_limit_of_zero():
  network, choices = make_network()
  free = costs_lib.Cost("free", lambda layer, bw, ba: 0)
  with pytest.raises(ValueError, match=r"'free=4bit' resolves to 0"):
    budget_lib.resolve(
      budget_lib.parse_budget("free=4bit"), network, choices, [free]
    )


def test_budgets_are_values():
  first = budget_lib.parse_budget("bops<=4.0bit")
  second = budget_lib.parse_budget("bops=4bit")
  assert first == second
  assert len({first, second}) == 1


def test_multiplier_rises_and_falls_and_stays_above_zero():
  multiplier = jnp.float32(0.1)
  expected = 0.1
  for use in (1.5, 1.2, 1.0, 0.7, 0.2, 0.1, 3.0):
    multiplier = budget_lib.update_multiplier(multiplier, use, rate=0.5)
    expected = max(0.0, expected + 0.5 * (use - 1.0))
    np.testing.assert_allclose(multiplier, expected, atol=1e-6)
    assert multiplier.dtype == jnp.float32
    assert multiplier.shape == ()


def test_penalty_of_several_budgets():
  multiplier = jnp.array([0.5, 2.0])
  use = jnp.array([1.5, 0.75])
  np.testing.assert_allclose(
    budget_lib.penalty(multiplier, use), 0.25 - 0.5, rtol=1e-6
  )
  slope = jax.grad(budget_lib.penalty, 1)(multiplier, use)
  np.testing.assert_array_equal(slope, multiplier)
  updated = budget_lib.update_multiplier(multiplier, use, rate=0.1)
  np.testing.assert_allclose(updated, [0.55, 1.975], rtol=1e-6)


@pytest.mark.parametrize("start", [-4.0, 4.0], ids=["below", "above"])
def test_multiplier_brings_the_use_to_the_budget(start):
  # Loss 3 (1 - p)^2 prefers the dear candidate; the costs are 0.5 and 2 of
  # the budget, so p = 1/3 uses it whole, where 6 (1 - p) = 1.5 μ.
  def use_of(logit):
    return 0.5 + 1.5 * jax.nn.sigmoid(logit)

  def objective(logit, multiplier):
    loss = 3 * (1 - jax.nn.sigmoid(logit)) ** 2
    return loss + budget_lib.penalty(multiplier, use_of(logit))

  def step(_, carry):
    logit, multiplier = carry
    slope = jax.grad(objective)(logit, multiplier)
    multiplier = budget_lib.update_multiplier(
      multiplier, use_of(logit), rate=0.02
    )
    return logit - 0.2 * slope, multiplier

  logit, multiplier = jax.lax.fori_loop(
    0, 3000, step, (jnp.float32(start), jnp.float32(0.0))
  )
  np.testing.assert_allclose(use_of(logit), 1.0, atol=1e-3)
  np.testing.assert_allclose(multiplier, 8 / 3, atol=1e-2)
