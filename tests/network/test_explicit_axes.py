"""Meshes with explicit axes, which `jax.make_mesh` makes by default."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import asga_jax
from asga_jax.network import arguments
from asga_jax.training import sharding

MESH = jax.make_mesh((1,), ("data",))
SPLIT = NamedSharding(MESH, PartitionSpec("data"))
ODD = (None, 0.5, 3, (1, 2), {"a": 1.0})
X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


def _network():
  return nnx.Sequential(
    nnx.Linear(4, 8, rngs=nnx.Rngs(0)),
    nnx.relu,
    nnx.Linear(8, 8, rngs=nnx.Rngs(1)),
    nnx.Linear(8, 3, rngs=nnx.Rngs(2)),
  )


def test_inputs_on_explicit_axes_are_as_any_others():
  assert MESH.axis_types == (AxisType.Explicit,)
  placed = jax.device_put(X, SPLIT)
  outputs = [
    asga_jax.searchable(_network(), x, bits=(2, 4, 8))(X) for x in (X, placed)
  ]
  np.testing.assert_array_equal(*outputs)


def test_a_search_shards_along_them_as_the_compiler_propagates():
  model = asga_jax.searchable(_network(), X, bits=(2, 4, 8))
  search = asga_jax.start_search(model, budget="bops=4bit", mesh=MESH)
  assert search.mesh == sharding.propagated(MESH)


def test_batches_on_them_stay_where_they_are():
  placed = jax.device_put(X, SPLIT)
  usual = sharding.propagated(MESH)
  (found,) = jax.tree.leaves(sharding.place_batch({"x": placed}, usual))
  assert found.sharding == sharding.batch_sharding(usual)
  assert found.unsafe_buffer_pointer() == placed.unsafe_buffer_pointer()


def test_variables_of_any_kind_lie_on_none():
  class Odd(nnx.Module):
    def __init__(self):
      self.layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
      self.kept = nnx.List(nnx.Variable(x) for x in ODD)

    def __call__(self, x):
      return self.layer(x)

  assert asga_jax.searchable(Odd(), X)(X).shape == X.shape
  arguments.check_module(nnx.eval_shape(_network))
  nnx.jit(arguments.check_module)(_network())


def test_what_would_fail_in_the_users_own_code_is_refused():
  held = _network()
  kernel = held.layers[2].kernel
  held.layers[2].kernel = nnx.Param(jax.device_put(kernel[...], SPLIT))
  with pytest.raises(
    ValueError, match=r"layers/2/kernel lies on explicit axes \('data',\); exp"
  ):
    asga_jax.searchable(held, X)
  with (
    jax.set_mesh(MESH),
    pytest.raises(ValueError, match=r"explicit axes .*AxisType\.Auto"),
  ):
    asga_jax.searchable(_network(), X)
  model = asga_jax.searchable(_network(), X)
  with (
    jax.set_mesh(MESH),
    pytest.raises(ValueError, match=r"set_mesh has explicit axes"),
  ):
    asga_jax.start_search(model, budget="bops=4bit", mesh=MESH)
