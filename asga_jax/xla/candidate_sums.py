"""What the backward pass of a mixture sums over a tensor for each candidate."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from asga_jax.xla import reductions, target

# On a CPU, XLA reduces an element at a time, but adds arrays in vectors. So
# slices of a tensor are added up element by element until one is left: large
# enough to be worth a turn of the loop, small enough for the caches.
CPU_SLICE = 16384
# Slices that a turn adds up before it touches the sums in memory.
PARTS = 4
# Elements side by side that a vector loop goes through, where a tensor may be
# cut anywhere.
LANES = 256
# Fewer than these, and adding elements to have `LANES` costs less.
FEWEST_LANES = 16


def codes(
  x: jax.Array,
  inverse: jax.Array,
  lower: jax.Array,
  upper: jax.Array,
  offset: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Give a tensor in steps, its codes and which of these are not clipped.

  Args:
    x: the tensor, float32 or float64.
    inverse: one over the steps; as all below, of a shape that broadcasts.
    lower: the lowest code.
    upper: the highest code.
    offset: added to every code.

  Returns:
    x / step - offset and the codes without the offset, in the dtype of x; and
    bool. All of the shape that the arguments broadcast to.
  """
  scaled = x * inverse - offset
  code = jnp.round(jnp.clip(scaled, lower, upper))
  inside = (scaled > lower) & (scaled < upper)
  return scaled, code, inside


def of(
  x: jax.Array,
  g: jax.Array,
  inverse: jax.Array,
  grids: Any,
  *,
  offset: float,
  step_gradient: str,
) -> tuple[jax.Array, jax.Array]:
  """Sum over a tensor what its gradient makes of each candidate's codes.

  Args:
    x: the tensor, float, any shape.
    g: the gradient of the mixture, as x.
    inverse: one over the steps, float32 or float64, shape (candidates,), or
      (candidates, channels) with the channels on the last axis of x.
    grids: the codes of each candidate, see `mixture.Grids`.
    offset: added to every code.
    step_gradient: see `mixture.Settings`.

  Returns:
    The sums of g times the code (for a float candidate: times x) and of g times
    the slope in the step (for a float candidate: anything), both of shape and
    dtype of `inverse`.
  """

  def terms(x, g, inverse, lower, upper, is_float):
    """Give what is summed; all have an axis of the candidates."""
    x, g = x.astype(inverse.dtype), g.astype(inverse.dtype)
    _, code, inside = codes(x, inverse, lower, upper, offset)
    if offset:
      code += offset
    inner = code - x * inverse if step_gradient == "full" else 0.0
    slope = jnp.where(inside, inner, code)
    return g * jnp.where(is_float, x, code), g * slope

  if target.platform() == "cpu":
    return _by_slices(terms, x, g, inverse, grids)

  def beside(value):
    """Give a candidates' array the axes of the tensor."""
    between = (1,) * (x.ndim + 1 - value.ndim)
    return value.reshape(value.shape[:1] + between + value.shape[1:])

  found = terms(x[None], g[None], *map(beside, (inverse, *grids)))
  axes = tuple(range(1, x.ndim + 2 - inverse.ndim))
  first, second = (jnp.sum(term, axis=axes) for term in found)
  return first, second


def _by_slices(terms, x, g, inverse, grids):
  """Sum slices of a tensor into one, and that in turn."""
  # A batch that may be split over devices stays whole: to slice it would gather
  # it.
  split = inverse.ndim == 1 < x.ndim and jax.device_count() > 1
  whole = x.shape[0] if split else 1
  size = x.size // max(whole, 1)
  columns = inverse[0].size
  if inverse.ndim == 1:
    columns = max(1, min(LANES, CPU_SLICE // max(whole, 1)))
    if math.gcd(size, columns) >= FEWEST_LANES:
      columns = math.gcd(size, columns)
  rows = -(-size // columns)
  turns, height = _turns(rows, whole * columns)
  count = turns * PARTS or 1
  shape = (whole, count, height, columns)

  def slices(tensor):
    """Shape a tensor to slices of rows, where zeros add nothing."""
    flat = tensor.reshape(whole, size)
    missing = count * height * columns - size
    return jnp.pad(flat, ((0, 0), (0, missing))).reshape(shape)

  xs, gs = slices(x), slices(g)
  # Candidates beside the columns: a row is then read once for all of them.
  scale = inverse.reshape(-1, inverse[0].size)
  values = (scale, *(grid.reshape(-1, 1) for grid in grids))

  def added(place):
    """Give the terms of a slice, (whole, rows, candidates, columns)."""
    pair = (
      jax.lax.dynamic_index_in_dim(tensor, place, 1, keepdims=False)
      for tensor in (xs, gs)
    )
    # As one complex number, for one loop over both: XLA would compute the codes
    # again for the second.
    return jax.lax.complex(
      *terms(*(part[:, :, None] for part in pair), *values)
    )

  def turn(index, sums):
    for part in range(PARTS):
      sums += added(index + part * turns)
    return sums

  if turns:
    kind = jnp.result_type(inverse.dtype, jnp.complex64)
    sums = jnp.zeros((whole, height, inverse.shape[0], columns), kind)
    # Inside `jax.shard_map` each shard has its own.
    axes = tuple(jax.typeof(gs).manual_axis_type.varying)
    sums = jax.lax.pcast(sums, axes, to="varying") if axes else sums
    sums = jax.lax.fori_loop(0, turns, turn, sums)
  else:
    sums = added(0)
  both = jnp.stack([jnp.real(sums), jnp.imag(sums)])
  few = max(1, reductions.FEW // max(whole * columns, 1))
  both = reductions.add_halves(both, 2, few)
  found = jnp.sum(both, axis=(1, 2) if inverse.ndim == 2 else (1, 2, 4))
  return found[0], found[1]


def _turns(rows: int, columns: int) -> tuple[int, int]:
  """Choose in how many turns of `PARTS` slices of rows to go.

  Args:
    rows: how many.
    columns: elements of each.

  Returns:
    The turns, 0 for none, and the rows of a slice; there may be more rows in
    all slices than were asked for.
  """
  most = min(rows, rows * columns // CPU_SLICE) // PARTS
  if not most:
    return 0, rows
  fitting = [n for n in range(1, most + 1) if rows % (n * PARTS) == 0]
  # Adding rows copies the tensor; a few large slices need far more memory.
  if fitting and 4 * fitting[-1] > most:
    return fitting[-1], rows // (fitting[-1] * PARTS)
  height = -(-rows // (most * PARTS))
  return -(-rows // (height * PARTS)), height
