"""Arrays of networks, and files of them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import numpy as safetensors_numpy


def variables_of(model):
  state = nnx.as_pure(nnx.state(model, nnx.Not(nnx.RngState)))
  return {
    "/".join(map(str, keys)): np.asarray(array)
    for keys, array in nnx.to_flat_state(state)
  }


def assert_same(found, wanted):
  assert found.keys() == wanted.keys()
  for name, array in wanted.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def as_trained(model):
  """Give every variable another value than its initial one."""
  rng = np.random.default_rng(7)
  graphdef, state = nnx.split(model)
  changed = jax.tree.map(
    lambda a: jnp.asarray(rng.uniform(0.5, 1.5, a.shape), a.dtype),
    nnx.as_pure(state),
  )
  return nnx.merge(graphdef, changed)


def write_arrays(path, arrays):
  safetensors_numpy.save_file(
    {name: np.ascontiguousarray(array) for name, array in arrays.items()}, path
  )
  return path
