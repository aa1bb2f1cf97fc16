"""Steps to start from: of least squared error, for a sample or a Gaussian."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from asga_jax.quantization import statistics

# Samples are padded to blocks of columns and of at most so many rows, so that
# few programs are compiled.
COLUMNS = 64
MOST_ROWS = 512
# Of a grid of 8 bits, less one; a float candidate would have more.
MOST_CODES = 255
# The share of a symmetric grid's squared error that is worth a zero point.
LESS = 0.9


@functools.partial(jax.jit, static_argnames="axis")
def _best_step(sample, largest, lower, upper, shares, axis):
  steps = jnp.multiply.outer(shares, largest) / upper

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
# Values that tell a grid, and how far, in steps, they may be off it.
_FEW, _OFF_GRID = 16, 0.01


def _shares(
  values: np.ndarray, largest: np.ndarray, upper: float
) -> np.ndarray:
  """Give the steps that are tried, in those of the full range.

  Besides narrower ones these are, where a few values say that they lie on a
  grid, wider ones at which the largest magnitude has a lower code: a tensor
  that was trained with few bits and stored in float is met exactly.
  """
  # None for float.
  codes = np.arange(upper // 2 + 1, min(upper, 256))
  few = values[:: max(1, len(values) // _FEW)][:_FEW] / largest
  scaled = np.multiply.outer(codes, few)
  off = np.abs(scaled - np.rint(scaled)).max(axis=1, initial=0)
  if not (off < _OFF_GRID).any():
    return _SHRINK.astype(np.float32)
  # Of few lengths, since each is a program of its own.
  missing = -len(codes) % (16 if upper < 32 else 64)
  wider = np.pad(upper / codes, (0, missing), constant_values=1)
  return np.concatenate([_SHRINK, wider]).astype(np.float32)


def mse_step(
  sample: jax.Array | statistics.Statistics, lower: jax.Array, upper: jax.Array
) -> jax.Array:
  """Find the step of least squared error, among 64 or more, wide to narrow.

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
    found = []
    for low, high in codes:
      steps = (sample.largest or 1.0) / high * _SHRINK
      best = 0
      # A float candidate's step is not used, and its codes are too many.
      if high <= MOST_CODES:
        errors = sample.errors(steps, int(high - low))
        best = int(np.argmin(errors[:, int(-low)]))
      found.append(steps[best])
    return jnp.asarray(np.array(found, np.float32))
  values = np.asarray(sample, np.float32)
  largest = np.abs(values).max(axis=0)
  largest = np.where(largest > 0, largest, np.float32(1))
  if values.ndim == 1:
    matrix = _padded(
      np.pad(values, (0, -len(values) % COLUMNS)).reshape(-1, COLUMNS)
    )
    found = []
    for code in codes:
      shares = _shares(values[:, None], largest, code[1])
      found.append(_best_step(matrix, largest, *code, shares, axis=None))
    return jnp.asarray(np.asarray(found))
  channels = values.shape[1]
  every = [_shares(values, largest, high) for _, high in codes]
  values = _padded(values)
  largest = np.pad(largest, (0, -channels % COLUMNS), constant_values=1)
  blocks = [slice(at, at + COLUMNS) for at in range(0, channels, COLUMNS)]
  found = [
    [
      _best_step(values[:, block], largest[block], *code, shares, axis=0)
      for block in blocks
    ]
    for code, shares in zip(codes, every, strict=True)
  ]
  return jnp.asarray(np.asarray(found).reshape(len(codes), -1)[:, :channels])


def mse_grid(
  sample: statistics.Statistics,
  highest: Sequence[int],
  *,
  alike: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Find the step and the zero point of least squared error.

  Among 64 steps of the range from the lowest to the highest value, from wide to
  narrow, 64 of the largest magnitude, and all zero points of each. A symmetric
  grid is kept where no other has `LESS` of its error: on inputs that are about
  even, a grid that fits the example a little better is no gain on others.

  Args:
    sample: the statistics of a tensor.
    highest: number of codes of a grid, less one, for each candidate.
    alike: whether to keep a symmetric grid in any case.

  Returns:
    The steps, float32, and the zero points, int64, shape (candidates,): codes
    are -zero to highest - zero.
  """
  span = max(sample.highest, 0.0) - min(sample.lowest, 0.0)
  found = []
  for codes in highest:
    # From the lowest value to the highest one, and as those of `mse_step`.
    ranges = (span or 1.0) / codes, (sample.largest or 1.0) / (codes // 2)
    steps = np.concatenate([each * _SHRINK for each in ranges])
    best = 0, 0
    if codes <= MOST_CODES:
      errors = sample.errors(steps, codes)
      best = divmod(int(np.argmin(errors)), codes + 1)
      even = errors[:, codes // 2 + 1]
      if alike or (sample.signed and errors[best] > LESS * even.min()):
        best = int(np.argmin(even)), codes // 2 + 1
    found.append((steps[best[0]], best[1]))
  each_step, zeros = zip(*found, strict=True)
  return np.array(each_step, np.float32), np.array(zeros)


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
