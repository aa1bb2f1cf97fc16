"""Checks of what the transformation is built with and called with."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from asga_jax.sharpness import ascent as ascent_lib
from asga_jax.sharpness import perturbation
from asga_jax.sharpness import radius as radius_lib

PyTree = Any
COMBINATIONS = ("mean", "perturbed", "gsam", "plain")
ValueAndGradFn = Callable[[PyTree], tuple[Any, PyTree]]


def check_number(
  name: str, value: Any, accepts: Callable[[float], bool], accepted: str
) -> None:
  """Check a hyper-parameter; a traced one cannot be and is let through.

  Raises:
    ValueError: not a finite scalar number, or not one that `accepts` accepts.
  """
  if isinstance(value, jax.core.Tracer):
    return
  scalar = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if isinstance(value, jax.Array):
    scalar = value.shape == ()
  # NaN and infinity fail the comparison with infinity.
  if not (scalar and abs(float(value)) < float("inf") and accepts(value)):
    raise ValueError(f"{name}={value!r}; accepted: {accepted}")


def check_choice(name: str, value: Any, accepted: Sequence[str]) -> None:
  """Check that an argument is one of a few values; ValueError if it is not."""
  if value not in accepted:
    raise ValueError(f"{name}={value!r}; accepted: {list(accepted)}")


def check_bool(name: str, value: Any) -> None:
  """Check that an argument is a Python boolean; ValueError if it is not."""
  if not isinstance(value, bool):
    raise ValueError(f"{name}={value!r}; accepted: True or False")


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


def check_settings(
  *,
  rho_max: Any,
  phi: Any,
  align: Any,
  radius: Any,
  combination: Any,
  gap_ema: Any,
  cap_align: Any,
  rho_min: Any,
  gsam_alpha: Any,
  mask: Any,
  gap_from_gradients: Any,
  axis_name: Any,
  ascent: Any,
  ascent_every: Any,
) -> None:
  """Check what `asga_transform` is built with.

  Raises:
    ValueError: names the argument, its value and what is accepted.
  """
  check_choice("radius", radius, radius_lib.KINDS)
  check_choice("combination", combination, COMBINATIONS)
  check_choice("ascent", ascent, ascent_lib.KINDS)
  if not callable(rho_max):
    check_number("rho_max", rho_max, lambda x: x > 0, "a positive number")
  if not callable(rho_min):
    ceiling: Any = rho_max if isinstance(rho_max, numbers.Real) else math.inf
    check_number(
      "rho_min", rho_min, lambda x: 0 <= x <= ceiling, "0 <= rho_min <= rho_max"
    )
  check_number("phi", phi, lambda x: x > 0, "a positive number")
  check_number("align", align, lambda x: x >= 0, "a number >= 0")
  check_number("gap_ema", gap_ema, lambda x: 0 <= x < 1, "a number in [0, 1)")
  check_number("gsam_alpha", gsam_alpha, lambda x: x >= 0, "a number >= 0")
  check_bool("cap_align", cap_align)
  check_bool("gap_from_gradients", gap_from_gradients)
  perturbation.check_mask(mask)
  if axis_name is not None and not isinstance(axis_name, str):
    raise ValueError(
      f"axis_name={axis_name!r}; accepted: None or the name of one mesh axis"
    )
  check_number(
    "ascent_every",
    ascent_every,
    lambda x: jnp.issubdtype(jnp.result_type(x), jnp.integer) and x >= 1,
    "a whole number of at least 1",
  )
  if ascent == "fresh":
    return
  # One gradient a step leaves nothing to combine, skip or hold by shard.
  for name, value, accepted in (
    ("combination", combination, ("mean", "perturbed")),
    ("axis_name", axis_name, (None,)),
    ("ascent_every", ascent_every, (1,)),
    ("cap_align", cap_align, (True,)),
    ("gap_from_gradients", gap_from_gradients, (False,)),
  ):
    traced = isinstance(value, jax.core.Tracer)
    if not traced and value not in accepted:
      raise ValueError(
        f"ascent={ascent!r} with {name}={value!r}; accepted: {list(accepted)}, "
        "or ascent='fresh'"
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
  value_and_grad_fn: ValueAndGradFn, params: PyTree, grads: PyTree
) -> tuple[jax.typing.ArrayLike, PyTree]:
  """Call `value_and_grad_fn` once and check what it returns.

  Args:
    value_and_grad_fn: function of the parameters to (loss, gradients).
    params: the displaced parameters.
    grads: the first gradient, whose structure the second is given. Gradients
      that are boxed leaf by leaf, as flax.nnx returns them, are unboxed.

  Returns:
    The loss, shape=(), and the gradients in the structure of `grads`.

  Raises:
    ValueError: the result is not of that form, structure and shapes.
  """
  result = value_and_grad_fn(params)
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


def vary(leaf: jax.Array, axis_name: str) -> jax.Array:
  """Mark a leaf as possibly different on each shard of a mesh axis."""
  try:
    return jax.lax.pcast(leaf, axis_name, to="varying")
  except ValueError:  # It is marked already, or the axis is one of jax.vmap.
    return leaf


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
