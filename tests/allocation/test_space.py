"""The expected cost of a mixture against a sum over every policy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.allocation import space as search_space
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import macs
from asga_jax.quantization import logit_layout
from asga_jax.training import state as state_lib


def _space(model):
  network, _ = model.deployed_network
  return search_space.build(model, network)


def _random_probabilities(space, model, seed):
  """Gives probabilities by group, and stacked as a step holds them."""
  _, params, _ = state_lib.split_model(model)
  layout = logit_layout.LogitLayout.of(params.logits)
  random = np.random.default_rng(seed)
  drawn = jax.tree.map(
    lambda leaf: jnp.asarray(random.dirichlet(np.ones(leaf.size)), jnp.float32),
    params.logits,
  )
  by_group = {
    group: np.asarray(values, np.float64)
    for group, values in space.by_group(drawn).items()
  }
  return layout, by_group, layout.stack(drawn)


def _brute_force(space, by_group, cost):
  """Sums probability times cost over every choice of every group."""
  candidates = {}
  for choice in space.choices.values():
    candidates[choice.weight_group] = choice.weight_bits
    candidates[choice.activation_group] = choice.activation_bits
  total = 0.0
  for picks in itertools.product(*(range(len(b)) for b in candidates.values())):
    index = dict(zip(candidates, picks, strict=True))
    probability = math.prod(by_group[g][i] for g, i in index.items())
    bits = {
      path: (
        c.weight_bits[index[c.weight_group]],
        c.activation_bits[index[c.activation_group]],
      )
      for path, c in space.choices.items()
    }
    total += probability * costs_lib.total_cost(space.network, bits, cost)
  return total


@pytest.fixture(scope="module")
def tied(tiny_network, tiny_batches):
  """`middle` and `inner` share their bits; `first` has candidates too."""
  return asga_jax.searchable(
    tiny_network,
    tiny_batches[0]["image"],
    bits=(2, 4, 8),
    rules=[
      asga_jax.Rule("middle|inner", tie="both"),
      asga_jax.Rule("first", weight_bits=(4, 6)),
    ],
  )


@pytest.mark.parametrize("which", ["untied", "tied"])
@pytest.mark.parametrize("seed", range(2))
def test_expected_use_is_the_mean_over_all_policies(
  tiny_searchable, tied, which, seed
):
  model = tied if which == "tied" else tiny_searchable
  space = _space(model)
  groups = {c.weight_group for c in space.choices.values()}
  assert len(groups) == (3 if which == "tied" else 4)
  layout, by_group, stacked = _random_probabilities(space, model, seed)
  limits = {"size": 3000, "bops": 40_000, "energy": 7.0}
  energy = costs_lib.Cost(
    "energy", lambda layer, bw, ba: layer.macs * 1e-5 * (bw + ba**0.5)
  )
  use = jax.jit(space.expected_use(layout, limits, [energy]))(stacked)
  expected = [
    _brute_force(space, by_group, cost) / limits[cost.name]
    for cost in (costs_lib.SIZE, costs_lib.BOPS, energy)
  ]
  np.testing.assert_allclose(use, expected, rtol=1e-5)


def test_the_gradient_is_the_cost_of_moving_to_a_candidate(tiny_searchable):
  space = _space(tiny_searchable)
  layout, by_group, stacked = _random_probabilities(space, tiny_searchable, 5)
  limits = {"bops": 40_000}
  use = space.expected_use(layout, limits)
  gradient = jax.grad(lambda stacked: use(stacked)[0])(stacked)
  slopes = space.by_group(layout.unstack(gradient))
  # Linear in each tensor: the slope is the use with that candidate for sure,
  # less what does not depend on the tensor at all.
  choice = space.choices["middle"]
  sure = []
  for index in range(3):
    one_hot = np.eye(3)[index]
    moved = {**by_group, choice.weight_group: one_hot}
    sure.append(_brute_force(space, moved, costs_lib.BOPS) / 40_000)
  found = np.asarray(slopes[choice.weight_group])
  np.testing.assert_allclose(np.diff(found), np.diff(sure), rtol=1e-4)


def test_build_reads_candidates_and_groups_in_call_order(tied):
  space = _space(tied)
  assert list(space.choices) == ["first", "middle", "inner", "head"]
  assert space.choices["first"].weight_bits == (4, 6)
  assert space.choices["first"].activation_bits == (8,)
  assert space.choices["middle"].weight_bits == (2, 4, 8)
  searched = {path: c.searched for path, c in space.choices.items()}
  assert searched == {
    "first": True,
    "middle": True,
    "inner": True,
    "head": False,
  }
  middle, inner = space.choices["middle"], space.choices["inner"]
  assert middle.weight_group == inner.weight_group
  assert middle.activation_group == inner.activation_group
  assert middle.weight_group != middle.activation_group


def test_scores_are_sorted_into_weights_and_activations(tied):
  space = _space(tied)
  by_group = {group: group for group in space.logit_paths}
  weights, activations = search_space.split_scores(space, by_group)
  assert weights.keys() | activations.keys() == by_group.keys()
  assert not weights.keys() & activations.keys()
  assert all("weight" in group for group in weights)
  assert all("activation" in group for group in activations)


def test_a_deployed_network_of_other_layers_is_named(tiny_searchable):
  class Other(nnx.Module):
    def __init__(self, rngs):
      self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
      self.extra = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
      return self.extra(self.first(x).mean(axis=(1, 2)))

  other = nnx.eval_shape(lambda: Other(nnx.Rngs(0)))
  with pytest.raises(ValueError, match=r"'extra'.*'middle'"):
    search_space.build(tiny_searchable, macs.network_stats(other, (8, 8, 1)))
