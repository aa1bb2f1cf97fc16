"""The gradient of a batch from its parts, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from asga_jax import sharpness


def accumulated(
  one_pass: Callable[..., Any], count: int, axis_name: str | None = None
) -> Callable[..., Any]:
  """Run a pass on one micro-batch after the other, and average what it gives.

  Each micro-batch is normalised by its own statistics; running statistics move
  once, by the mean over the micro-batches. Counts of random draws go on from
  one to the next, so that no two of them drop the same.

  Args:
    one_pass: of (params, rest, data) to ((mean loss, (figures, rest after)),
      gradients).
    count: of micro-batches, 2 or more.
    axis_name: the axis that batches are split over, inside `jax.shard_map`.

  Returns:
    The same function of the whole batch. Sums run in float32 or better.
  """

  def of_batch(params, rest, data):
    parts = micro_batches(data, count)

    def of_part(drawn, part):
      (value, (figures, after)), gradients = one_pass(params, drawn, part)
      moved = jax.tree.map(jnp.subtract, _floats(after), _floats(rest))
      return (value, figures, gradients, moved), _with_floats(after, rest)

    def add(carried, part):
      total, drawn = carried
      found, drawn = of_part(drawn, part)
      return (jax.tree.map(jnp.add, total, found), drawn), None

    shapes, _ = jax.eval_shape(of_part, rest, jax.tree.map(_first, parts))
    nothing = jax.tree.map(
      lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
      shapes,
    )
    nothing = sharpness.vary(nothing, axis_name) if axis_name else nothing
    (total, drawn), _ = jax.lax.scan(add, (nothing, rest), parts)
    value, figures, gradients, moved = jax.tree.map(
      lambda x, like: (x / count).astype(jnp.result_type(like.dtype, 0.0)),
      total,
      shapes,
    )
    moves = iter(moved)
    after = jax.tree.map(
      lambda x: x + next(moves) if _is_float(x) else x, drawn
    )
    return (value, (figures, after)), gradients

  return of_batch


def micro_batches(data: Any, count: int) -> Any:
  """Part the examples of a batch in turn: (B, ...) to (count, B / count, ...).

  In turn, so that each part is spread over the devices as the batch is, and
  nothing travels.

  Raises:
    ValueError: arrays that do not all hold the same number of examples, or one
      that does not divide.
  """
  shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(data)}
  if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
    raise ValueError(
      f"a batch holds arrays of the shapes {sorted(shapes)}, and accumulate is"
      f" {count}; expected the same number of examples along the first axis of"
      " each, to be parted."
    )
  (size,) = {shape[0] for shape in shapes}
  if size % count:
    raise ValueError(
      f"a batch of {size} does not split into accumulate={count}; expected a"
      f" multiple of {count}."
    )

  def part(leaf):
    rows = leaf.reshape(size // count, count, *leaf.shape[1:])
    return jnp.moveaxis(rows, 1, 0)

  return jax.tree.map(part, data)


def _first(leaf: jax.Array) -> jax.Array:
  return leaf[0]


def _is_float(leaf: jax.Array) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _floats(tree: Any) -> list[jax.Array]:
  return [leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]


def _with_floats(tree: Any, of: Any) -> Any:
  """Give a tree whose floats are those of another one."""
  return jax.tree.map(lambda x, y: y if _is_float(x) else x, tree, of)
