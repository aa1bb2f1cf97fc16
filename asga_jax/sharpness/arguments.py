"""Checks of what the transformation is called with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any
ValueAndGradFn = Callable[[PyTree], tuple[Any, PyTree]]


def refuse_masked_nodes(tree: PyTree) -> None:
  """Raise ValueError if a tree was cut by optax.masked or optax.partition."""
  nodes = jax.tree.leaves(
    tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode)
  )
  if any(isinstance(node, optax.MaskedNode) for node in nodes):
    raise ValueError(
      "optax.masked or optax.partition around asga_transform: its second pass"
      " needs the whole parameters, and some were masked out. Put it outside,"
      " in a chain, and choose what is perturbed by asga_transform(mask=...)"
    )


def check_call(
  grads: PyTree,
  params: PyTree,
  value: Any,
  value_and_grad_fn: Any,
  *,
  one_gradient: bool = False,
) -> None:
  """Check what `update` is called with.

  Args:
    grads: as `update` takes them, as the others.
    params: the parameters.
    value: the loss.
    value_and_grad_fn: for the second pass.
    one_gradient: whether there is none, and nothing to call.

  Raises:
    ValueError: an argument is missing, `value` is not a scalar, or the
      gradients have not the structure of the parameters.
  """
  given = {
    "params": params,
    "value": value,
    "value_and_grad_fn": value_and_grad_fn,
  }
  if one_gradient:
    del given["value_and_grad_fn"]
  missing = [name for name, argument in given.items() if argument is None]
  if missing:
    raise ValueError(
      f"update of asga_transform lacks {', '.join(missing)}; call it as"
      " update(grads, state, params, value=loss,"
      " value_and_grad_fn=value_and_grad_fn)"
    )
  if not (one_gradient or callable(value_and_grad_fn)):
    raise ValueError(
      f"value_and_grad_fn={value_and_grad_fn!r} is not callable; accepted: a"
      " function of the parameters that returns (loss, grads)"
    )
  _check_scalar("value", value)
  structures: list[Any] = [jax.tree.structure(tree) for tree in (grads, params)]
  if structures[0] != structures[1]:
    raise ValueError(
      "the gradients handed to update have not the structure of params:"
      f" {structures[0]} against {structures[1]}"
    )


def second_pass(
  value_and_grad_fn: ValueAndGradFn,
  displaced: PyTree,
  grads: PyTree,
  params: PyTree,
) -> tuple[jax.typing.ArrayLike, PyTree]:
  """Call `value_and_grad_fn` once and check what it returns.

  Args:
    value_and_grad_fn: function of the parameters to (loss, gradients).
    displaced: the parameters to call it with.
    grads: the first gradient, whose structure the second is given. Gradients
      that are boxed leaf by leaf, as flax.nnx returns them, are unboxed.
    params: the parameters themselves, for their dtypes.

  Returns:
    The loss, shape=(), and the gradients in the structure of `grads`.

  Raises:
    ValueError: the result is not of that form, structure and shapes; or the
      function fails at perturbed parameters that are of a wider dtype.
  """
  try:
    result = value_and_grad_fn(displaced)
  except (TypeError, ValueError) as error:
    pairs = zip(*map(jax.tree.leaves, (params, displaced)), strict=True)
    wider = sorted(
      {f"{a.dtype} -> {b.dtype}" for a, b in pairs if a.dtype != b.dtype}
    )
    if not wider:
      raise
    raise ValueError(
      "value_and_grad_fn fails at the perturbed parameters, which are wider "
      f"than params ({', '.join(wider)}) so that a small radius is not rounded "
      "away: it must take both dtypes, by casting inputs to those of the "
      f"parameters for instance; {type(error).__name__}: {error}"
    ) from error
  if not (isinstance(result, tuple) and len(result) == 2):
    raise ValueError(
      f"value_and_grad_fn returned {type(result).__name__}; accepted: a tuple"
      " (loss, grads)"
    )
  loss, perturbed_grads = result
  _check_scalar("value_and_grad_fn(params)[0]", loss)

  def unbox(grad: jax.Array, part: PyTree) -> jax.Array:
    leaves = jax.tree.leaves(part)
    if [leaf.shape for leaf in leaves] != [grad.shape]:
      raise ValueError(f"{part!r} where an array of {grad.shape} belongs")
    return leaves[0]

  try:
    return loss, jax.tree.map(unbox, grads, perturbed_grads)
  except (ValueError, TypeError) as error:
    raise ValueError(
      "the gradients of value_and_grad_fn have not the structure and shapes"
      f" of those handed to update: {error}"
    ) from error


def vary(tree: PyTree, axis_name: str | None) -> PyTree:
  """Mark leaves as possibly different on each shard of a mesh axis, if any."""
  if axis_name is None:
    return tree

  def mark(leaf: jax.Array) -> jax.Array:
    try:
      return jax.lax.pcast(leaf, axis_name, to="varying")
    except ValueError:  # It is marked already, or the axis is one of jax.vmap.
      return leaf

  return jax.tree.map(mark, tree)


def check_varying(grads: PyTree, axis_name: str) -> None:
  """Check that the gradients are those of a shard, not their sum.

  Raises:
    ValueError: inside `jax.shard_map`, no leaf varies over the axis.
  """
  leaves = jax.tree.leaves(grads)
  if all(
    jax.typeof(vary(leaf, axis_name)) != jax.typeof(leaf) for leaf in leaves
  ):
    raise ValueError(
      f"axis_name={axis_name!r}, but the gradients are the same on all its"
      " shards: jax.shard_map has summed them. Take them at"
      f' jax.lax.pcast(params, {axis_name!r}, to="varying")'
    )


def _check_scalar(name: str, value: Any) -> None:
  leaves = jax.tree.leaves(value)
  if len(leaves) != 1 or leaves[0] is not value or jnp.shape(value) != ():
    raise ValueError(
      f"{name} must be a loss of shape (), got"
      f" {jax.tree.map(jnp.shape, value)}; drop auxiliary output"
    )
