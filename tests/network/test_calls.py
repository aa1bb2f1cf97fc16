"""Layers in the order of their calls, and what they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asga_jax.network import calls as tracing


def _init(key, shape, dtype):
  """Draws from numpy: the initializers of `jax` take seconds to compile."""
  del key
  rng = np.random.default_rng(shape)
  return jnp.asarray(
    rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), dtype
  )


class Net(nnx.Module):
  """Calls its layers in another order than their names have."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.z_first = nnx.Conv(
      3, 4, (3, 3), padding="CIRCULAR", kernel_init=_init, rngs=rngs
    )
    self.inner = nnx.Dict(shared=nnx.Linear(4, 4, kernel_init=_init, rngs=rngs))
    self.a_last = nnx.Linear(4, 2, kernel_init=_init, rngs=rngs)
    self.alias = self.inner["shared"]
    self.unused = nnx.Linear(4, 2, kernel_init=_init, rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.calls = nnx.BatchStat(jnp.zeros(()))

  def __call__(self, x):
    self.calls[...] += 1
    x = self.norm(self.z_first(x)).mean(axis=(1, 2))
    return self.a_last(self.alias(jnp.sin(self.inner["shared"](x))))

  def first(self, x):
    return self.z_first(x)


def _bytes(model):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model)]


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 3)), jnp.float32)


def test_calls_in_order_with_what_they_read():
  model = Net()
  before = _bytes(nnx.state(model))
  output, calls = tracing.record_calls(model, X)
  names = [call.path for call in calls]
  shared = names[1]
  assert names == ["z_first", shared, shared, "a_last"]
  assert shared in ("alias", "inner/shared")
  # A circular convolution pads its input before its product.
  assert calls[0].inputs.shape == (2, 7, 7, 3)
  np.testing.assert_array_equal(calls[0].kernel, model.z_first.kernel[...])
  np.testing.assert_allclose(
    calls[3].output, calls[3].inputs @ model.a_last.kernel[...], rtol=1e-5
  )
  np.testing.assert_array_equal(calls[2].inputs.shape, (2, 4))
  # The handed-in model is as it was: its statistics, its products, its output.
  assert _bytes(nnx.state(model)) == before
  assert model.a_last.dot_general is jax.lax.dot_general
  np.testing.assert_array_equal(output, model(X))
  assert model.calls[...] == 1


def test_find_layers_lists_a_shared_layer_once():
  found = tracing.find_layers(Net())
  assert len(found) == 4
  assert {"z_first", "a_last", "unused"} < set(found)


def test_other_method():
  _, calls = tracing.record_calls(Net(), X, method="first")
  assert [call.path for call in calls] == ["z_first"]


def test_without_arrays():
  model = nnx.eval_shape(Net)
  graphdef, state = nnx.split(model)
  shapes = []

  def run(state, x):
    merged = nnx.merge(graphdef, state, copy=True)
    _, calls = tracing.record_calls(merged, x)
    shapes.extend(call.output.shape for call in calls)

  jax.eval_shape(run, state, X)
  assert shapes == [(2, 5, 5, 4), (2, 4), (2, 4), (2, 2)]


@pytest.mark.parametrize(
  ("path", "name"), [(("a", 0, "b"), "a/0/b"), ((), ""), (("head",), "head")]
)
def test_path_name(path, name):
  assert tracing.path_name(path) == name
