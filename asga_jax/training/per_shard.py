"""A gradient computed by each shard of a batch, and averaged over them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from asga_jax import sharpness
from asga_jax.training import sharding


def averaged(compute: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """Run a computation on each shard of a batch by itself.

  Each shard sees its own examples alone: its statistics of batch norm and its
  perturbation are of these (m-sharpness, Foret et al. 2021, section 4.1).

  Args:
    compute: of (state of the transformation, rest of the network, parameters,
      prepared batch) to (gradient and state, both averaged by the
      transformation, rest after, figures).
    mesh: of the axis `data`.

  Returns:
    The same function of the whole batch; floats of the rest and figures are
    means over the shards, whole numbers their largest.
  """
  whole, split = PartitionSpec(), PartitionSpec(sharding.DATA_AXIS)

  def of_shard(before, rest, params, data):
    combined, after, new_rest, figures = compute(
      before, _own(rest), _vary(params), data
    )
    new_rest = jax.tree.map(_joined, new_rest, rest)
    figures = jax.tree.map(lambda x: _joined(x, x), figures)
    return combined, after, new_rest, figures

  return jax.shard_map(
    of_shard,
    mesh=mesh,
    in_specs=(whole, whole, whole, split),
    out_specs=whole,
    axis_names={sharding.DATA_AXIS},
  )


def averaged_pass(
  one_pass: Callable[..., Any], mesh: Mesh
) -> Callable[..., Any]:
  """Run a pass on each shard of a batch by itself, and average what it gives.

  Gradients are those of the whole batch but for norms, which take their
  statistics from each shard.

  Args:
    one_pass: of (params, rest, data) to ((mean loss, (figures, rest after)),
      gradients).
    mesh: of the axis `data`.

  Returns:
    The same function of the whole batch; see `averaged` for the rest.
  """
  whole, split = PartitionSpec(), PartitionSpec(sharding.DATA_AXIS)

  def of_shard(params, rest, data):
    (value, (figures, after)), gradients = one_pass(
      _vary(params), _own(rest), data
    )
    after = jax.tree.map(_joined, after, rest)
    value, figures, gradients = jax.tree.map(
      lambda x: _joined(x, x), (value, figures, gradients)
    )
    return (value, (figures, after)), gradients

  return jax.shard_map(
    of_shard,
    mesh=mesh,
    in_specs=(whole, whole, split),
    out_specs=whole,
    axis_names={sharding.DATA_AXIS},
  )


def _vary(tree: Any) -> Any:
  return sharpness.vary(tree, sharding.DATA_AXIS)


def _own(rest: Any) -> Any:
  """Give a shard random keys of its own, so that no two drop the same."""
  index = jax.lax.axis_index(sharding.DATA_AXIS)

  def fold(leaf: jax.Array) -> jax.Array:
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return leaf
    folded = jax.vmap(lambda key: jax.random.fold_in(key, index))
    return folded(leaf.reshape(-1)).reshape(leaf.shape)

  return jax.tree.map(fold, _vary(rest))


def _joined(leaf: jax.Array, before: jax.Array) -> jax.Array:
  """Make one of what the shards have; keys stay as they were."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return before
  join = jax.lax.pmean if jnp.issubdtype(leaf.dtype, jnp.inexact) else None
  return (join or jax.lax.pmax)(_vary(leaf), sharding.DATA_AXIS)
