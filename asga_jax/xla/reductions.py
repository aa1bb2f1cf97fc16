"""Sums over many elements in the form that XLA runs fast on a CPU.

XLA's CPU backend reduces an element at a time, but adds two arrays in vectors:
halves that are added up first leave it little to reduce.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from asga_jax.xla import target

# Elements that are left to be reduced.
FEW = 2048
# Elements of an array whose halves are added up by themselves.
MANY = 8192


def add_halves(x: jax.Array, axis: int, until: int) -> jax.Array:
  """Add up halves of an axis as long as it is even and longer than `until`.

  Args:
    x: float32 or float64, any shape.
    axis: which one.
    until: the length to stop at.

  Returns:
    An array whose sum along the axis is that of x; its dtype.
  """
  while x.shape[axis] % 2 == 0 and x.shape[axis] > until:
    first, second = jnp.split(x, 2, axis)
    x = first + second
  return x


def total(arrays: Sequence[jax.Array]) -> jax.Array:
  """Sum all elements of all arrays.

  Args:
    arrays: at least one, float32 or float64, of any shapes.

  Returns:
    Shape (), in their common dtype.
  """
  # Where an array may be split over devices, putting it in a row with others
  # would gather it.
  if target.platform() != "cpu" or jax.device_count() > 1:
    return jnp.sum(jnp.stack([jnp.sum(x) for x in arrays]))
  # Small ones are not worth kernels of their own.
  flat = [
    add_halves(x.ravel(), 0, FEW) if x.size > MANY else x.ravel()
    for x in arrays
  ]
  padding = -sum(x.size for x in flat) % 64
  whole = jnp.concatenate([*flat, jnp.zeros(padding, flat[0].dtype)])
  return jnp.sum(add_halves(whole, 0, FEW))
