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


class Pair(nnx.Module):
  """Calls one norm twice, on inputs of which one has more rows."""

  def __init__(self):
    self.norm = nnx.BatchNorm(6, rngs=nnx.Rngs(0))

  def __call__(self, *, many, few):
    return self.norm(many).sum() + self.norm(few).sum()


class Stacked(nnx.Module):
  """Has two norms of one scanned layer, within remat."""

  def __init__(self):
    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def make(rngs):
      return nnx.BatchNorm(6, rngs=rngs)

    self.norms = make(nnx.Rngs(0))

  def __call__(self, x):
    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    @nnx.remat
    def run(norm, x):
      return norm(x) * 3 + 1

    return run(self.norms, x)


def test_all_calls_of_a_norm_are_pooled_by_what_they_read():
  rows = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
  cuts = [(0, 9, 10), (10, 17, 20)]
  batches = [
    {"many": rows[a:b] + 5, "few": rows[b:c] * 2 - 1} for a, b, c in cuts
  ]
  made = asga_jax.reestimate_batch_norm(Pair(), batches)
  read = np.concatenate([x for batch in batches for x in batch.values()])
  assert len(read) == 20
  np.testing.assert_allclose(made.norm.mean[...], read.mean(axis=0), rtol=1e-5)
  np.testing.assert_allclose(made.norm.var[...], read.var(axis=0), rtol=1e-5)


def test_norms_within_scan_and_remat_take_new_statistics():
  made = asga_jax.reestimate_batch_norm(Stacked(), [X + 2])
  want = [(X + 2).mean(axis=0), np.ones(6)]
  np.testing.assert_allclose(made.norms.mean[...], want, rtol=1e-4)
  want = [X.var(axis=0), np.full(6, 9)]
  np.testing.assert_allclose(made.norms.var[...], want, rtol=1e-3)


def test_a_warning_where_no_statistic_moves(caplog):
  with caplog.at_level("WARNING"):
    asga_jax.reestimate_batch_norm(Unread(), [X])
  assert "none of the 1 batch norms of Unread has moved" in caplog.text
