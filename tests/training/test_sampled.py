"""Steps at one candidate a tensor: how it is drawn, and what it is."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.quantization import logit_layout
from asga_jax.training import sharding

STEPS = 60


class TwoLayers(nnx.Module):
  """A perceptron without norms or dropout: what a policy gives is its alone."""

  def __init__(self, rngs):
    self.first = nnx.Linear(64, 16, rngs=rngs)
    self.second = nnx.Linear(16, 3, rngs=rngs)

  def __call__(self, x):
    x = x.reshape(len(x), -1)
    return self.second(nnx.relu(self.first(x)))


@pytest.fixture(scope="module")
def network(tiny_batches):
  rules = [asga_jax.Rule(".*", weight_bits=(2, 4), activation_bits=8)]
  return asga_jax.searchable(
    TwoLayers(nnx.Rngs(0)), tiny_batches[0]["image"], rules=rules
  )


def test_candidates_are_drawn_by_their_probabilities():
  rows = jnp.asarray([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
  mixed = {1: jnp.ones((2, 1)), 3: rows}
  draws = 4000
  drawn = jax.vmap(lambda key: logit_layout.sample(key, mixed))(
    jax.random.split(jax.random.key(0), draws)
  )
  assert set(np.unique(drawn[3])) == {0, 1}
  np.testing.assert_array_equal(drawn[3].sum(axis=-1), 1)
  np.testing.assert_array_equal(drawn[1], 1)
  # Five standard errors of a share.
  error = 5 * np.sqrt(np.asarray(rows * (1 - rows)) / draws)
  shares = np.asarray(drawn[3]).mean(axis=0)
  assert (np.abs(shares - rows) <= error).all()
  # Tensors are drawn independently.
  both = np.mean(drawn[3][:, 0, 0] * drawn[3][:, 1, 1])
  assert both == pytest.approx(0.35, abs=5 * np.sqrt(0.35 * 0.65 / draws))


def test_a_step_has_the_loss_of_a_policy(network, tiny_batches):
  still = asga_jax.SearchSettings(
    steps=STEPS,
    sampled=True,
    preset="sgd",
    sharpness={},
    learning_rate=0.0,
    quantizer_learning_rate=0.0,
    logit_learning_rate=0.0,
    multiplier_rate=0.0,
  )
  search = asga_jax.start_search(network, budget="bops=4.5bit", settings=still)
  batch = sharding.place_batch(tiny_batches[0], search.mesh)
  state, seen = search.state, []
  for _ in range(STEPS):
    state, figures = search.step(state, batch)
    seen.append(float(figures["loss"]))
  # The logits started where the mixture costs the budget, and no fall of the
  # temperature takes them from there.
  assert float(figures["expected_use"]) == pytest.approx(1, abs=1e-3)
  found = asga_jax.allocate(asga_jax.finish_search(search, state))
  of_policies = []
  for bits in itertools.product((2, 4), repeat=2):
    layers = {
      path: dataclasses.replace(layer, weight_bits=few)
      for (path, layer), few in zip(found.layers.items(), bits, strict=True)
    }
    policy = dataclasses.replace(found, layers=layers)
    fixed = asga_jax.with_policy(network, policy)
    of_policies.append(float(asga_jax.cross_entropy(fixed, tiny_batches[0])[0]))
  apart = np.abs(np.subtract.outer(seen, of_policies))
  np.testing.assert_allclose(apart.min(axis=1), 0, atol=1e-5)
  assert set(apart.argmin(axis=1)) == {0, 1, 2, 3}


def test_a_falling_temperature_is_refused():
  with pytest.raises(ValueError, match="two equal numbers"):
    asga_jax.SearchSettings(sampled=True, temperature=(1.0, 0.5))
  asga_jax.SearchSettings(sampled=True, temperature=(0.5, 0.5))
