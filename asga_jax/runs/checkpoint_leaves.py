"""The leaves of a checkpoint: their names, index, checksums and data."""

import re
import zlib
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental import multihost_utils

from asga_jax.network import kinds

# Choices of bits are named by their layer, not by its product.
_PRODUCT = re.compile(
  rf"\['(?:{'|'.join(kinds.ATTRIBUTES)})'\](?=\['(?:weight|activation)'\])"
)
_HOST_TYPES = (np.ndarray, np.generic, bool, int, float)


def _is_key(leaf: Any) -> bool:
  return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def named_leaves(state: Any) -> dict[str, Any]:
  """List the leaves by name; raises TypeError for what is no array."""
  leaves = {
    "state" + _PRODUCT.sub("", jax.tree_util.keystr(path)): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
  for name, leaf in leaves.items():
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, *_HOST_TYPES)):
      raise TypeError(
        f"{name} is a {type(leaf).__name__}; a checkpoint holds arrays, "
        "numbers and random keys"
      )
  return leaves


def _shape_dtype(leaf: Any) -> tuple[list[int], str]:
  leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
  return list(leaf.shape), str(leaf.dtype)


def checksum(data: Any) -> int:
  """Sum the bytes of an array, wherever its parts lie.

  Of one that lies in parts on several processes all must ask.
  """
  if isinstance(data, jax.Array) and not data.is_fully_addressable:
    data = (
      data.addressable_data(0)
      if data.is_fully_replicated
      else multihost_utils.process_allgather(data, tiled=True)
    )
  contents = np.ascontiguousarray(data).reshape(-1)
  return zlib.crc32(contents.view(np.uint8).data) if contents.size else 0


def to_data(leaf: Any) -> jax.Array | np.ndarray:
  """Turn a leaf into a plain array; host arrays are copied."""
  if _is_key(leaf):
    return jax.random.key_data(leaf)
  return leaf if isinstance(leaf, jax.Array) else np.array(leaf)


def index_entry(leaf: Any, data: jax.Array | np.ndarray) -> dict[str, Any]:
  """Say of what shape and dtype a leaf is, and the checksum of its data."""
  shape, dtype = _shape_dtype(leaf)
  entry = {"shape": shape, "dtype": dtype, "crc32": checksum(data)}
  if _is_key(leaf):
    entry["impl"] = str(jax.random.key_impl(leaf))
  return entry


def mismatches(saved: dict[str, Any], leaves: dict[str, Any]) -> list[str]:
  """Describe the leaves in which a checkpoint differs from the target."""
  lines = []
  for name in sorted(saved.keys() | leaves.keys()):
    entry = saved.get(name)
    found = entry and (entry["shape"], entry["dtype"])
    wanted = _shape_dtype(leaves[name]) if name in leaves else None
    if found != wanted:
      told = [f"{x[1]}{x[0]}" if x else "nothing" for x in (found, wanted)]
      lines.append(f"{name}: found {told[0]}, expected {told[1]}")
  return lines


def device_sharding(leaf: Any) -> jax.sharding.Sharding | None:
  """Find where a leaf must go; None leaves the choice to JAX."""
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf.sharding
  committed = isinstance(leaf, jax.Array) and leaf.committed
  return leaf.sharding if committed else None


def template(leaf: Any) -> Any:
  """Tell Orbax the shape, dtype and sharding to restore."""
  sharding = device_sharding(leaf)
  data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
  data = data if hasattr(data, "dtype") else np.asarray(data)
  if sharding is not None:
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
  return np.broadcast_to(np.zeros((), data.dtype), data.shape)


def to_leaf(like: Any, data: Any, entry: dict[str, Any]) -> Any:
  """Turn restored data into a leaf of the target's kind."""
  if isinstance(like, (bool, int, float)):
    return type(like)(data.item())
  if isinstance(like, _HOST_TYPES):
    return data[()] if isinstance(like, np.generic) else np.array(data)
  # A copy: a buffer of NumPy's must not be handed to a step that donates it.
  array = data if isinstance(data, jax.Array) else jnp.array(data, copy=True)
  if _is_key(like):
    return jax.random.wrap_key_data(array, impl=entry["impl"])
  return array
