"""Uniform bits within a budget, against brute force and by hand."""

import pytest

from asga_jax import policy as policy_lib
from asga_jax.allocation import uniform
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib

PATHS = ("first", "a", "b", "c", "d", "last")
NETWORK = costs_lib.NetworkStats(
  tuple(
    costs_lib.LayerStats(path, 100 * (index + 1), 10 * (index + 2))
    for index, path in enumerate(PATHS)
  ),
  float_parameters=7,
)
COSTS = (costs_lib.BOPS, costs_lib.SIZE)


def make_choices(**changed):
  found = {
    path: policy_lib.LayerChoice((2, 3, 4), (2, 3, 4), searched=True)
    for path in PATHS
  }
  for path in ("first", "last"):
    found[path] = policy_lib.LayerChoice((8,), (8,), searched=False)
  return found | changed


def total(bits, cost=costs_lib.BOPS):
  return costs_lib.total_cost(NETWORK, bits, cost)


def at(*bits):
  """The policy of these bits for a to d, weights and inputs alike."""
  middle = dict(zip("abcd", bits, strict=True))
  return {path: (middle.get(path, 8),) * 2 for path in PATHS}


# Which of four layers are raised, by how many: the rule of equal distances.
SPREAD = {0: (0, 0, 0, 0), 1: (0, 0, 0, 1), 2: (0, 1, 0, 1), 3: (0, 1, 1, 1)}


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.name)
def test_the_most_that_fits_of_all_widths_and_spreads(cost):
  levels = [
    at(*(low + up for up in raised))
    for low in (2, 3)
    for raised in SPREAD.values()
  ]
  levels.append(at(4, 4, 4, 4))
  amounts = [total(bits, cost) for bits in levels]
  choices = make_choices()
  for limit in {x + d for x in amounts for d in (-1, 0, 1)}:
    limits = {cost.name: limit}
    if limit < amounts[0]:
      with pytest.raises(budget_lib.InfeasibleBudgetError, match="lowest"):
        uniform.uniform_bits(NETWORK, choices, COSTS, limits)
      continue
    # The widest width first, then the most layers.
    expected = [bits for bits in levels if total(bits, cost) <= limit][-1]
    found = uniform.uniform_bits(NETWORK, choices, COSTS, limits)
    assert found == expected, limit
    assert list(found) == list(PATHS)


def test_all_limits_hold():
  limits = {
    "bops": total(at(3, 3, 3, 3)),
    "size": total(at(2, 3, 2, 3), costs_lib.SIZE),
  }
  found = uniform.uniform_bits(NETWORK, make_choices(), COSTS, limits)
  assert found == at(2, 3, 2, 3)


def test_tied_layers_are_raised_together():
  tied = policy_lib.LayerChoice(
    (2, 3, 4), (2, 3, 4), searched=True, activation_group="together"
  )
  choices = make_choices(b=tied, d=tied)
  # Of the three units a, b with d, and c the last is the first to be raised.
  limits = {"bops": total(at(2, 2, 3, 2))}
  found = uniform.uniform_bits(NETWORK, choices, COSTS, limits)
  assert found == at(2, 2, 3, 2)
  limits = {"bops": total(at(2, 3, 3, 3))}
  found = uniform.uniform_bits(NETWORK, choices, COSTS, limits)
  assert found == at(2, 3, 3, 3)


def test_what_lacks_a_width_gets_the_next_lower_or_its_lowest():
  choices = make_choices(
    a=policy_lib.LayerChoice((2, 4), (8,), searched=True),
    b=policy_lib.LayerChoice((4, 8), (3, 4), searched=True),
  )
  limits = {"size": total(at(2, 4, 3, 3), costs_lib.SIZE)}
  found = uniform.uniform_bits(NETWORK, choices, COSTS, limits)
  assert found == at(2, 4, 3, 3) | {"a": (2, 8), "b": (4, 3)}


def test_a_budget_that_only_mixed_bits_meet_is_told():
  odd = costs_lib.Cost(
    "odd", lambda layer, bw, ba: int(layer.path in "ab" and bw == ba)
  )
  with pytest.raises(budget_lib.InfeasibleBudgetError, match="no uniform bits"):
    uniform.uniform_bits(NETWORK, make_choices(), (odd,), {"odd": 1})


def test_without_a_choice_the_bits_are_as_they_are():
  fixed = policy_lib.LayerChoice((8,), (8,), searched=False)
  choices = dict.fromkeys(PATHS, fixed)
  limits = {"bops": total(at(8, 8, 8, 8))}
  found = uniform.uniform_bits(NETWORK, choices, COSTS, limits)
  assert found == at(8, 8, 8, 8)
