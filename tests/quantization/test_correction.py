"""Batch norm's statistics, moved by the difference that quantization makes."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


class Net(nnx.Module):
  """Two norms, the second called twice."""

  def __init__(self, rngs):
    self.first = nnx.Linear(6, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.second = nnx.Linear(8, 8, rngs=rngs)
    self.twice = nnx.BatchNorm(8, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.first(x)))
    x = self.twice(self.second(x))
    return self.twice(2 * x)


@pytest.fixture(scope="module")
def pair():
  """A float network with statistics that X does not have, and one of 2 bits."""
  net = Net(nnx.Rngs(0))
  net.norm.mean[...] = jnp.arange(8) / 8
  net.norm.var[...] = 1 + jnp.arange(8.0)
  net.eval()
  rules = [asga_jax.Rule(".*", weight_bits=2, activation_bits=8)]
  return net, asga_jax.searchable(net, X, rules=rules)


def test_a_network_is_left_alone_beside_itself(pair):
  net, _ = pair
  found = asga_jax.reestimate_batch_norm(net, [X[:40], X[40:]], reference=net)
  for one, other in ((found.norm, net.norm), (found.twice, net.twice)):
    np.testing.assert_allclose(one.mean[...], other.mean[...], atol=1e-5)
    np.testing.assert_allclose(one.var[...], other.var[...], rtol=1e-4)


def test_the_first_norm_is_the_closed_form(pair):
  net, low = pair
  found = asga_jax.reestimate_batch_norm(low, [X], reference=net)
  before, after = (np.asarray(m.first(X), np.float64) for m in (net, low))
  np.testing.assert_allclose(
    found.norm.mean[...],
    np.arange(8) / 8 + after.mean(0) - before.mean(0),
    atol=1e-5,
  )
  np.testing.assert_allclose(
    found.norm.var[...],
    (1 + np.arange(8)) * after.var(0) / before.var(0),
    rtol=1e-4,
  )
  # The second is told of what comes out of the first, corrected.
  hidden, quantized = (
    np.asarray(m.second(nnx.relu(m.norm(m.first(X))))) for m in (net, found)
  )
  moved = quantized.mean(0) - hidden.mean(0)
  assert np.abs(found.twice.mean[...]).max() > 0.01
  assert np.abs(moved).max() > 0.01


def test_a_feature_that_is_lost_is_not_blown_up(pair):
  net, low = pair
  low = nnx.clone(low)
  low.first.kernel[...] *= jnp.zeros(8).at[1:].set(1)
  found = asga_jax.reestimate_batch_norm(low, [X], reference=net)
  np.testing.assert_allclose(found.norm.var[...][0], 1 / 16, rtol=1e-3)
  assert np.isfinite(found(X)).all()


def test_a_reference_of_other_norms(pair):
  _, low = pair
  other = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"has 1 batch norms of other"):
    asga_jax.reestimate_batch_norm(low, [X], reference=other)
