"""What quantization shifts, moved back: norms and biases, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


class Net(nnx.Module):
  """Two norms, the second called twice, and a layer with a bias at the end."""

  def __init__(self, rngs):
    self.first = nnx.Linear(6, 8, use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.second = nnx.Linear(8, 8, use_bias=False, rngs=rngs)
    self.twice = nnx.BatchNorm(8, rngs=rngs)
    self.last = nnx.Linear(8, 4, rngs=rngs)

  def hidden(self, x):
    x = nnx.relu(self.norm(self.first(x)))
    x = self.twice(self.second(x))
    return self.twice(2 * x)

  def __call__(self, x):
    return self.last(self.hidden(x))


@pytest.fixture(scope="module")
def pair():
  """A float network with statistics that X does not have, and one of 2 bits."""
  net = Net(nnx.Rngs(0))
  net.norm.mean[...] = jnp.arange(8) / 8
  net.norm.var[...] = 1 + jnp.arange(8.0)
  net.last.bias[...] = jnp.arange(4.0)
  net.eval()
  rules = [asga_jax.Rule(".*", weight_bits=2, activation_bits=8)]
  return net, asga_jax.searchable(net, X, rules=rules)


@pytest.mark.slow
def test_a_network_is_left_alone_beside_itself(pair):
  net, _ = pair
  same = asga_jax.searchable(net, X, bits=(32,), end_bits=32)
  found = asga_jax.correct_bias(same, [X[:40], X[40:]], reference=net)
  for one, other in ((found.norm, net.norm), (found.twice, net.twice)):
    np.testing.assert_allclose(one.mean[...], other.mean[...], atol=1e-5)
    np.testing.assert_allclose(one.var[...], other.var[...], rtol=1e-4)
  np.testing.assert_allclose(found.last.bias[...], np.arange(4), atol=1e-5)


def test_the_first_norm_is_the_closed_form(pair):
  net, low = pair
  found = asga_jax.correct_bias(low, [X], reference=net)
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


def test_outputs_have_the_float_networks_means(pair):
  net, low = pair
  apart = np.abs(np.asarray(low(X) - net(X))).mean(0)
  assert apart.max() > 0.1
  found = asga_jax.correct_bias(low, [X], reference=net)
  # One norm is called twice and keeps one mean: what follows is told of it.
  shift = np.asarray(found.last.bias[...] - low.last.bias[...])
  assert np.abs(shift).max() > 0.01
  np.testing.assert_array_equal(found.last.kernel[...], net.last.kernel[...])


def test_biases_without_norms_are_the_closed_form():
  class Plain(nnx.Module):
    def __init__(self, rngs):
      self.first = nnx.Linear(6, 8, rngs=rngs)
      self.heads = nnx.LinearGeneral(8, (2, 3), rngs=rngs)

    def __call__(self, x):
      return self.heads(nnx.relu(self.first(x)))

  net = Plain(nnx.Rngs(0))
  rules = [asga_jax.Rule(".*", weight_bits=2, activation_bits=3)]
  low = asga_jax.searchable(net, X, rules=rules)
  found = asga_jax.correct_bias(low, [X], reference=net)
  wanted, before = (np.asarray(m.first(X)).mean(0) for m in (net, low))
  np.testing.assert_allclose(
    found.first.bias[...], wanted - before, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    np.asarray(found(X)).mean(0), np.asarray(net(X)).mean(0), atol=1e-5
  )
  # Batches weigh by their size.
  parts = asga_jax.correct_bias(low, [X[:48], X[48:]], reference=net)
  each = [
    asga_jax.correct_bias(low, [part], reference=net).first.bias[...]
    for part in (X[:48], X[48:])
  ]
  np.testing.assert_allclose(
    parts.first.bias[...], 0.75 * each[0] + 0.25 * each[1], atol=1e-6
  )


def test_a_layer_with_a_call_of_its_own_is_left_alone():
  class Positive(nnx.Linear):
    def __call__(self, x):
      return nnx.relu(super().__call__(x))

  net = Positive(6, 8, rngs=nnx.Rngs(0))
  low = asga_jax.searchable(net, X, bits=(2,), end_bits=2)
  found = asga_jax.correct_bias(low, [X], reference=net)
  np.testing.assert_array_equal(found.bias[...], net.bias[...])


def test_a_feature_that_is_lost_is_not_blown_up(pair):
  net, low = pair
  low = nnx.clone(low)
  low.first.kernel[...] *= jnp.zeros(8).at[1:].set(1)
  found = asga_jax.correct_bias(low, [X], reference=net)
  np.testing.assert_allclose(found.norm.var[...][0], 1 / 16, rtol=1e-3)
  assert np.isfinite(found(X)).all()


def test_what_it_is_given_is_checked(pair):
  net, low = pair
  other = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"has no 'last' of the size \(4,\)"):
    asga_jax.correct_bias(low, [X], reference=other)
  with pytest.raises(ValueError, match="batches is empty"):
    asga_jax.correct_bias(low, [], reference=net)
  with pytest.raises(ValueError, match="the example input is None"):
    asga_jax.correct_bias(low, [None], reference=net)


def test_the_method_is_the_searched_one(pair):
  net, _ = pair
  rules = [asga_jax.Rule(".*", weight_bits=2, activation_bits=8)]
  low = asga_jax.searchable(net, X, rules=rules, method="hidden")
  found = asga_jax.correct_bias(low, [X], reference=net)
  wanted = np.asarray(net.first(X)).mean(0), np.asarray(low.first(X)).mean(0)
  np.testing.assert_allclose(
    found.norm.mean[...], np.arange(8) / 8 + wanted[1] - wanted[0], atol=1e-5
  )
  # Not called by it, so that nothing is known of it.
  np.testing.assert_array_equal(found.last.bias[...], net.last.bias[...])


class Recurrent(nnx.Module):
  """Has layers with biases inside a scan, and one behind it."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.turns = nnx.RNN(nnx.GRUCell(4, 5, rngs=rngs))
    self.head = nnx.Linear(5, 3, rngs=rngs)

  def __call__(self, x):
    return self.head(self.turns(x)[:, -1])


def test_layers_within_a_scan_keep_their_biases():
  net = Recurrent()
  x = np.random.default_rng(0).normal(size=(16, 3, 4)).astype(np.float32)
  model = asga_jax.searchable(net, x, bits=(3,), end_bits=3)
  made = asga_jax.correct_bias(model, [x], reference=net)
  cell, before = made.turns.cell, net.turns.cell
  np.testing.assert_array_equal(
    cell.dense_i.bias[...], before.dense_i.bias[...]
  )
  # Of the layer behind it the mean is that of the float network.
  assert np.abs((model(x) - net(x)).mean(axis=0)).max() > 1e-3
  np.testing.assert_allclose(
    made(x).mean(axis=0), net(x).mean(axis=0), atol=1e-5
  )
