import itertools

import numpy as np
import pytest
from allocation.cases import resnet18

from asga_jax import policy as policy_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import latency_table


def ends_fixed(network, bits=(2, 4, 8)):
  ends = (network.paths[0], network.paths[-1])
  return {
    path: policy_lib.LayerChoice(
      (8,) if path in ends else bits,
      (8,) if path in ends else bits,
      searched=path not in ends,
    )
    for path in network.paths
  }


def small():
  network = costs_lib.NetworkStats(
    (
      costs_lib.LayerStats("a", 100, 10),
      costs_lib.LayerStats("b", 300, 20),
      costs_lib.LayerStats("c", 700, 5),
    ),
    float_parameters=3,
  )
  choices = {
    "a": policy_lib.LayerChoice((8,), (8,), searched=False),
    "b": policy_lib.LayerChoice((2, 4), (2, 3, 4), searched=True),
    "c": policy_lib.LayerChoice((2, 4), (8,), searched=True),
  }
  return network, choices


def test_resnet18_figures():
  network = resnet18()
  macs = {layer.path: layer.macs for layer in network.layers}
  assert sum(macs.values()) == pytest.approx(1814.07e6, rel=1e-5)
  assert macs["stem"] == pytest.approx(118.01e6, rel=1e-4)
  assert macs["head"] == 512000
  # Torchvision's count of parameters.
  weights = sum(layer.weights for layer in network.layers)
  assert weights + network.float_parameters == 11689512


@pytest.mark.parametrize(
  ("bits", "convention", "giga"),
  [
    (4, "all_layers_fixed_at_own_bits", 34.71),
    (2, "all_layers_fixed_at_own_bits", 14.37),
    (8, "all_layers_fixed_at_own_bits", 116.1),
    (8, "all_layers_at_searched_bits", 116.1),
    (4, "all_layers_at_searched_bits", 29.0),
    (32, "all_layers_at_searched_bits", 1857.6),
    # The first without the stem and the head, at 64 BOPs a MAC.
    (4, "searched_layers_only", 34.71 - (118.01 + 0.512) * 0.064),
  ],
)
def test_resnet18_under_each_convention(bits, convention, giga):
  network = resnet18()
  bops = costs_lib.uniform_bops(
    network, ends_fixed(network), bits, convention=convention
  )
  assert bops / 1e9 == pytest.approx(giga, rel=1e-3)


def test_each_figure_carries_its_convention():
  network = resnet18()
  text = costs_lib.format_uniform_bops(network, ends_fixed(network), 4)
  assert text.splitlines() == [
    "uniform 4 bits: 34.7144 GBOPs (all_layers_fixed_at_own_bits)",
    "uniform 4 bits: 29.0252 GBOPs (all_layers_at_searched_bits)",
    "uniform 4 bits: 27.1288 GBOPs (searched_layers_only)",
  ]


def test_uniform_convention_is_what_a_budget_means():
  network = resnet18()
  choices = ends_fixed(network)
  bits = costs_lib.uniform_bits(network, choices, 4)
  assert bits["stem"] == bits["head"] == (8, 8)
  assert costs_lib.total_cost(
    network, bits, costs_lib.BOPS
  ) == costs_lib.uniform_bops(
    network,
    choices,
    4,
    convention=costs_lib.BopsConvention.ALL_LAYERS_FIXED_AT_OWN_BITS,
  )
  floating = costs_lib.float_cost(network, costs_lib.BOPS)
  assert floating == 1024 * sum(layer.macs for layer in network.layers)


def test_sizes_are_bits_and_exact():
  network, _ = small()
  bits = {"a": (8, 8), "b": (4, 2), "c": (2, 8)}
  assert costs_lib.total_cost(network, bits, costs_lib.SIZE) == (
    10 * 8 + 20 * 4 + 5 * 2 + 32 * 3
  )
  # Beyond 2**53 a float would lose the last unit.
  large = costs_lib.NetworkStats(
    (costs_lib.LayerStats("a", 2**60 + 1, 1), costs_lib.LayerStats("b", 1, 1)),
    0,
  )
  total = costs_lib.total_cost(
    large, {"a": (2, 2), "b": (3, 1)}, costs_lib.BOPS
  )
  assert total == 2**62 + 7


@pytest.mark.parametrize(
  ("containers", "widths"),
  [
    ((2, 4, 8, 16, 32), {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8, 32: 32}),
    ((32, 8), {2: 8, 3: 8, 8: 8, 32: 32}),
  ],
)
def test_weights_go_to_the_narrowest_container(containers, widths):
  network, _ = small()
  cost = costs_lib.container_cost(containers)
  for bits, width in widths.items():
    given = {"a": (bits, 2), "b": (8, 8), "c": (32, 4)}
    assert costs_lib.total_cost(network, given, cost) == (
      10 * width + 20 * 8 + 5 * 32 + 32 * 3
    )


@pytest.mark.parametrize("containers", [(), (4, 0), (8, 4.5), (True,)])
def test_bad_containers(containers):
  with pytest.raises(ValueError, match="one or more integers above 0"):
    costs_lib.container_cost(containers)


def test_weights_wider_than_every_container():
  network, _ = small()
  cost = costs_lib.container_cost((2, 4, 8))
  with pytest.raises(ValueError, match=r"\(2, 4, 8\): none holds the 32-bit"):
    costs_lib.float_cost(network, cost)


def test_tables_agree_with_totals():
  network, choices = small()
  table = {
    (layer.path, bw, ba): layer.macs * bw / 1000 + ba / 10
    for layer in network.layers
    for bw in (2, 4, 8)
    for ba in (2, 3, 4, 8)
  }
  for cost in (
    costs_lib.BOPS,
    costs_lib.SIZE,
    latency_table.latency_cost(table),
  ):
    tables, constant = costs_lib.cost_tables(network, choices, cost)
    assert list(tables) == ["a", "b", "c"]
    for i, j, k in itertools.product(range(2), range(3), range(2)):
      bits = {
        "a": (8, 8),
        "b": ((2, 4)[i], (2, 3, 4)[j]),
        "c": ((2, 4)[k], 8),
      }
      assert costs_lib.total_cost(network, bits, cost) == pytest.approx(
        tables["a"][0, 0] + tables["b"][i, j] + tables["c"][k, 0] + constant,
        rel=1e-14,
      )
  assert costs_lib.cost_tables(network, choices, costs_lib.BOPS)[0][
    "b"
  ].dtype == np.dtype(np.int64)


def test_decimal_costs_sum_to_the_decimal_whatever_the_order():
  layers = tuple(costs_lib.LayerStats(str(i), 1, 1) for i in range(3))
  cost = costs_lib.Cost(
    "energy", lambda layer, *bits: (int(layer.path) + 1) / 10
  )
  bits = {str(i): (8, 8) for i in range(3)}
  for order in itertools.permutations(layers):
    network = costs_lib.NetworkStats(order, 0)
    assert costs_lib.total_cost(network, bits, cost) == 0.6
  assert 0.1 + 0.2 + 0.3 != 0.6


def test_a_cost_of_the_users_is_one_function():
  network, choices = small()
  energy = costs_lib.Cost(
    "energy", lambda layer, bw, ba: np.float32(layer.macs * (bw + ba))
  )
  bits = costs_lib.uniform_bits(network, choices, 4)
  assert costs_lib.total_cost(network, bits, energy) == (
    100 * 16 + 300 * 8 + 700 * 8
  )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "4", None])
def test_a_cost_must_be_a_finite_number(value):
  network, choices = small()
  cost = costs_lib.Cost("energy", lambda layer, bw, ba: value)
  with pytest.raises(ValueError, match=r"'energy' of layer 'a' at \(8, 8\)"):
    costs_lib.cost_tables(network, choices, cost)


def test_choices_must_match_the_layers():
  network, choices = small()
  wrong = {**choices, "d": choices["c"]}
  del wrong["b"]
  with pytest.raises(ValueError, match=r"lacks \['b'\], and \['d'\]"):
    costs_lib.cost_tables(network, wrong, costs_lib.BOPS)
  with pytest.raises(ValueError, match=r"bits must name.*lacks \['a', 'b'"):
    costs_lib.total_cost(network, {}, costs_lib.BOPS)


def test_members_of_a_group_need_equal_candidates():
  network, choices = small()

  def choice(bits, group):
    return policy_lib.LayerChoice(bits, (4,), searched=True, weight_group=group)

  choices |= {"b": choice((2, 4), "g"), "c": choice((4, 2), "g")}
  with pytest.raises(ValueError, match=r"'g'.*'b'.*\(2, 4\).*'c' \(4, 2\)"):
    costs_lib.check_choices(network, choices)
  choices |= {"b": choice((2, 4), "a"), "c": choice((2, 4), "a")}
  with pytest.raises(ValueError, match="'a' of layer 'b' is the path"):
    costs_lib.check_choices(network, choices)
  choices |= {"b": choice((2, 4), "b"), "c": choice((2, 4), "b")}
  costs_lib.check_choices(network, choices)


def test_bad_networks():
  layer = costs_lib.LayerStats("a", 1, 1)
  for layers, count in (
    ((), 0),
    ((layer, layer), 0),
    ((layer,), -1),
    ((costs_lib.LayerStats("a", -1, 1),), 0),
  ):
    with pytest.raises(ValueError, match="expected"):
      costs_lib.NetworkStats(layers, count)


def test_two_costs_of_one_name():
  with pytest.raises(ValueError, match="two costs are named 'bops'"):
    costs_lib.by_name([costs_lib.BOPS, costs_lib.BOPS])


@pytest.mark.parametrize(
  ("name", "amount", "text"),
  [
    ("bops", 34_714_419_200, "34.7144 GBOPs"),
    ("bops", 12, "12 BOPs"),
    ("size", 48_000_000, "6 MB"),
    ("size", 60, "7.5 B"),
    ("container_size", 48_000_000, "6 MB"),
    ("latency", 3.125, "3.125 ms"),
    ("energy", 1500, "1.5 K"),
    ("energy", 0.25, "0.25"),
  ],
)
def test_amounts_carry_their_unit(name, amount, text):
  assert costs_lib.format_amount(name, amount) == text
