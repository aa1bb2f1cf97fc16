"""Running statistics taken anew, whatever a network tells its norms."""

import numpy as np
import pytest
from flax import nnx

import asga_jax

X = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


class Told(nnx.Module):
  """Tells its norm at each call which statistics to use."""

  def __init__(self, in_order):
    self.norm = nnx.BatchNorm(6, rngs=nnx.Rngs(0))
    self.in_order = in_order

  def __call__(self, x, training=False):
    if self.in_order:
      return self.norm(x, not training)
    return self.norm(x, use_running_average=not training)


class Unread(nnx.Module):
  """Has a norm that it does not call."""

  def __init__(self):
    self.norm = nnx.BatchNorm(6, rngs=nnx.Rngs(0))

  def __call__(self, x):
    return x


@pytest.mark.parametrize("in_order", [False, True])
def test_norms_told_to_keep_their_statistics_take_new_ones(in_order):
  net = Told(in_order)
  made = asga_jax.reestimate_batch_norm(net, [2 * X[:3] + 1, 2 * X[3:] + 1])
  mean, var = (2 * X + 1).mean(axis=0), (2 * X + 1).var(axis=0)
  np.testing.assert_allclose(made.norm.mean[...], mean, rtol=1e-5)
  np.testing.assert_allclose(made.norm.var[...], var, rtol=1e-4)
  # The copy is called as the network is.
  want = (X - mean) / np.sqrt(var + 1e-5)
  np.testing.assert_allclose(made(X), want, rtol=1e-3, atol=1e-4)


def test_a_warning_where_no_statistic_moves(caplog):
  with caplog.at_level("WARNING"):
    asga_jax.reestimate_batch_norm(Unread(), [X])
  assert "none of the 1 batch norms of Unread has moved" in caplog.text
