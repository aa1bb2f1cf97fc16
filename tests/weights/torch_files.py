"""Networks' arrays under the names and in the layouts that PyTorch has."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from weights.arrays import write_arrays

NORM = {
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


def fill_at_random(make, seed=0):
  """Make a network of random values, all different, without initializers."""
  rng = np.random.default_rng(seed)
  graphdef, state = nnx.split(nnx.eval_shape(make))
  filled = jax.tree.map(
    lambda like: jnp.asarray(
      rng.uniform(0.5, 1.5, like.shape) / np.sqrt(like.shape[0] or 1),
      jnp.float32,
    ),
    nnx.as_pure(state),
  )
  return nnx.merge(graphdef, filled)


def to_torch(module, leaf, value):
  """Give the name and the layout that PyTorch has for a variable."""
  if leaf == "kernel":
    axes = (3, 2, 0, 1) if value.ndim == 4 else (1, 0)
    return f"{module}.weight", value.transpose(axes)
  return f"{module}.{NORM[leaf]}", value


def write_as_torch(variables, module_name, path):
  """Write variables under the modules that `module_name` names."""
  arrays = {}
  for name, value in variables.items():
    *parts, leaf = name.split("/")
    module = module_name(*parts)
    key, array = to_torch(module, leaf, value)
    assert key not in arrays
    arrays[key] = array
    if leaf == "mean":
      arrays[f"{module}.num_batches_tracked"] = np.int64(3)
  write_arrays(path, arrays)
  return arrays
