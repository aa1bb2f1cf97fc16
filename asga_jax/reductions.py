"""Sums over many elements in the form that XLA runs fast on a CPU.

XLA's CPU backend reduces an element at a time, but adds two arrays in vectors:
halves that are added up first leave it little to reduce.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Elements that are left to be reduced.
FEW = 2048
# Elements of an array whose halves are added up by themselves.
MANY = 8192


def add_halves(x: jax.Array, axis: int, until: int) -> jax.Array:
  """Add up halves of an axis as long as it is even and longer than `until`.

  Args:
    x: any array.
    axis: which one.
    until: the length to stop at.

  Returns:
    An array whose sum along the axis is that of x.
  """
  while x.shape[axis] % 2 == 0 and x.shape[axis] > until:
    first, second = jnp.split(x, 2, axis)
    x = first + second
  return x


def total(arrays: Sequence[jax.Array]) -> jax.Array:
  """Sum all elements of all arrays, in their common dtype.

  Args:
    arrays: at least one, of any shapes.

  Returns:
    Shape ().
  """
  if jax.default_backend() != "cpu":
    return jnp.sum(jnp.stack([jnp.sum(x) for x in arrays]))
  flat = [x.reshape(math.prod(x.shape)) for x in arrays]
  # Small ones are not worth kernels of their own.
  flat = [add_halves(x, 0, FEW) if x.size > MANY else x for x in flat]
  padding = -sum(x.size for x in flat) % 64
  whole = jnp.concatenate([*flat, jnp.zeros(padding, flat[0].dtype)])
  return jnp.sum(add_halves(whole, 0, FEW))
