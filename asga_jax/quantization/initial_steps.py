"""Steps to start from: of least squared error, for a sample or a Gaussian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from asga_jax.quantization import statistics

# Samples are padded to blocks of columns and of at most so many rows, so that
# few programs are compiled.
COLUMNS = 64
MOST_ROWS = 512


@functools.partial(jax.jit, static_argnames="axis")
def _best_step(sample, largest, lower, upper, axis):
  shrink = jnp.asarray(_SHRINK, largest.dtype)
  steps = jnp.multiply.outer(shrink, largest) / upper

  def error(step):
    code = jnp.round(jnp.clip(sample * (1 / step), lower, upper))
    return jnp.sum((step * code - sample) ** 2, axis=axis)

  best = jnp.argmin(jax.lax.map(error, steps), axis=0)
  return jnp.take_along_axis(steps, best[None], axis=0)[0]


def _padded(values: np.ndarray) -> np.ndarray:
  """Pad a matrix with zeros, which cost nothing at any step."""
  rows, columns = values.shape
  block = min(MOST_ROWS, 1 << (rows - 1).bit_length())
  return np.pad(values, ((0, -rows % block), (0, -columns % COLUMNS)))


# How much narrower than the full range steps are tried: down to 1/64, since two
# bits of a long-tailed tensor clip most of it.
_SHRINK = np.exp2(-np.arange(64) * 6 / 63)


def mse_step(
  sample: jax.Array | statistics.Statistics, lower: jax.Array, upper: jax.Array
) -> jax.Array:
  """Find the step of least squared error, among 64 from wide to narrow.

  Not to be traced.

  Args:
    sample: the whole tensor, shape (n,) or (n, channels), or its statistics.
    lower: the lowest code, shape (candidates,).
    upper: the highest code, shape (candidates,).

  Returns:
    The steps, float32, shape (candidates,) or (candidates, channels). Zeros
    alone are taken to range up to 1, so that what replaces them can be told
    apart.
  """
  codes = list(zip(np.asarray(lower), np.asarray(upper), strict=True))
  if isinstance(sample, statistics.Statistics):
    steps = np.outer(1 / np.asarray(upper), _SHRINK) * (sample.largest or 1.0)
    found = [
      # A float candidate's step is not used, and its codes are too many.
      each[0]
      if high > 255
      else each[np.argmin(sample.errors(each, int(low), int(high)))]
      for each, (low, high) in zip(steps, codes, strict=True)
    ]
    return jnp.asarray(np.array(found, np.float32))
  values = np.asarray(sample, np.float32)
  largest = np.abs(values).max(axis=0)
  largest = np.where(largest > 0, largest, np.float32(1))
  if values.ndim == 1:
    matrix = _padded(
      np.pad(values, (0, -len(values) % COLUMNS)).reshape(-1, COLUMNS)
    )
    found = [_best_step(matrix, largest, *code, axis=None) for code in codes]
    return jnp.asarray(np.asarray(found))
  channels = values.shape[1]
  values = _padded(values)
  largest = np.pad(largest, (0, -channels % COLUMNS), constant_values=1)
  blocks = [slice(at, at + COLUMNS) for at in range(0, channels, COLUMNS)]
  found = [
    [
      _best_step(values[:, block], largest[block], *code, axis=0)
      for block in blocks
    ]
    for code in codes
  ]
  return jnp.asarray(np.asarray(found).reshape(len(codes), -1)[:, :channels])


@functools.cache
def gaussian_step(lower: int, upper: int) -> float:
  """Find the uniform step of least squared error for a unit Gaussian.

  Codes from 0 up stand for its positive half, all of which takes codes from 1
  up (half-wave Gaussian quantization, Cai et al. 2017, section 3.2); the rest
  is zero at any step. Codes on both sides give the uniform quantizer of Max
  (1960, table 2).

  Args:
    lower: the lowest code.
    upper: the highest code.

  Returns:
    The step, in standard deviations.
  """
  start, lowest = (0.0, 1) if lower == 0 else (-12.0, lower)
  points = np.linspace(start, 12.0, 20_001)
  density = np.exp(-(points**2) / 2)

  def error(step):
    rounded = step * np.clip(np.round(points / step), lowest, upper)
    return np.trapezoid((rounded - points) ** 2 * density, points)

  found = optimize.minimize_scalar(
    error,
    bounds=(1e-3 / upper, 6.0 / max(1, upper) ** 0.5),
    method="bounded",
    options={"xatol": 1e-6},
  )
  return float(found.x)
