"""What the backward pass of a mixture sums over a tensor for each candidate."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from asga_jax import reductions

# On a CPU, XLA reduces an element at a time, but adds arrays in vectors. So
# slices of a tensor are added up element by element until one is left: large
# enough to be worth a turn of the loop, small enough for the caches.
CPU_SLICE = 16384
# Slices that a turn adds up before it touches the sums in memory.
PARTS = 4
# Elements side by side that a vector loop goes through, where a tensor may be
# cut anywhere.
LANES = 256


def codes(x, inverse, lower, upper, offset):
  """Give x in steps of one candidate, its codes and the inner mask."""
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
    x: the tensor, float32 or float64.
    g: the gradient of the mixture, as x.
    inverse: one over the steps, shape (candidates,), or (candidates, channels)
      with the channels on the last axis of x.
    grids: the codes of each candidate, see `mixture.Grids`.
    offset: added to every code.
    step_gradient: see `mixture.mixture`.

  Returns:
    The sums of g times the code (for a float candidate: times x) and of g times
    the slope in the step (for a float candidate: anything), both of the shape
    of `inverse`.
  """
  # A batch may be split over devices: to slice it would gather it.
  whole = x.shape[0] if inverse.ndim == 1 < x.ndim and _split_over_cpus() else 1
  columns = x.shape[-1] if x.ndim else 1
  if inverse.ndim == 1:
    columns = math.gcd(x.size // max(whole, 1), LANES)
  rows = x.size // max(whole * columns, 1)
  # Beside the rows and the columns of the tensor.
  beside = (-1, 1) if inverse.ndim == 1 else (-1, columns)
  scale = inverse.reshape(beside)
  lower, upper, is_float = (grid.reshape(-1, 1) for grid in grids)

  def added(x, g):
    """Give what rows add, (whole, rows, candidates, columns)."""
    x, g = x[:, :, None], g[:, :, None]
    _, code, inside = codes(x, scale, lower, upper, offset)
    if offset:
      code += offset
    inner = code - x * scale if step_gradient == "full" else 0.0
    slope = jnp.where(inside, inner, code)
    # In one complex number, for one loop over both: XLA fuses the codes into
    # each of two.
    return jax.lax.complex(g * jnp.where(is_float, x, code), g * slope)

  turns, padding = _turns(rows, whole * columns)
  parts = PARTS if turns else 1

  def slices(tensor):
    """Shape a tensor to slices of rows, where zeros add nothing."""
    matrix = tensor.reshape(whole, rows, columns)
    matrix = jnp.pad(matrix, ((0, 0), (0, padding), (0, 0)))
    return matrix.reshape(whole, max(turns, 1) * parts, -1, columns)

  xs, gs = slices(x), slices(g)

  def turn(index, sums):
    for part in range(parts):
      place = index + part * turns
      pair = (
        jax.lax.dynamic_index_in_dim(tensor, place, 1, keepdims=False)
        for tensor in (xs, gs)
      )
      sums += added(*pair)
    return sums

  if turns:
    kind = jnp.result_type(x.dtype, jnp.complex64)
    zeros = jnp.zeros((whole, xs.shape[2], inverse.shape[0], columns), kind)
    sums = jax.lax.fori_loop(0, turns, turn, zeros)
  else:
    sums = added(xs[:, 0], gs[:, 0])
  both = jnp.stack([jnp.real(sums), jnp.imag(sums)])
  if jax.default_backend() == "cpu":
    few = max(1, reductions.FEW // max(whole * columns, 1))
    both = reductions.add_halves(both, 2, few)
  found = jnp.sum(both, axis=(1, 2) if inverse.ndim == 2 else (1, 2, 4))
  return found[0], found[1]


def _split_over_cpus() -> bool:
  return jax.default_backend() == "cpu" and jax.device_count() > 1


def _turns(rows: int, columns: int) -> tuple[int, int]:
  """Choose in how many turns of `PARTS` slices of rows a CPU goes.

  Args:
    rows: how many.
    columns: elements of each.

  Returns:
    The turns, 0 for none, and how many rows to add so that slices are equal.
  """
  most = min(rows, rows * columns // CPU_SLICE) // PARTS
  if jax.default_backend() != "cpu" or not most:
    return 0, 0
  fitting = [n for n in range(1, most + 1) if rows % (n * PARTS) == 0]
  # Adding rows copies the tensor; a few large slices need far more memory.
  if fitting and 4 * fitting[-1] > most:
    return fitting[-1], 0
  return most, -rows % (most * PARTS)
