"""Meshes with explicit axes, which `jax.make_mesh` makes by default."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import asga_jax
from asga_jax.training import sharding

MESH = jax.make_mesh((1,), ("data",))
SPLIT = NamedSharding(MESH, PartitionSpec("data"))
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
  assert search.mesh == sharding.data_mesh(jax.devices()[:1])


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
