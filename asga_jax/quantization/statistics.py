"""The distribution of a whole tensor, over all calls and batches."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Bins of equal width over [-2^e, 2^e], zero on a border between two.
BINS = 2**17
_HALF = BINS // 2


class Histogram(NamedTuple):
  """Counts of one tensor; arrays, so that a traced program may return it."""

  counts: jax.Array  # shape=(BINS,), dtype=int32
  exponent: jax.Array  # e, int32: no magnitude is above 2^e
  lowest: jax.Array  # float32
  highest: jax.Array  # float32


@jax.named_scope("histogram")
def count(x: jax.Array) -> Histogram:
  """Count a tensor's values; may be traced.

  Args:
    x: numbers, any shape but an empty one.
  """
  flat = x.reshape(-1).astype(jnp.float32)
  lowest, highest = flat.min(), flat.max()
  largest = jnp.maximum(jnp.abs(lowest), jnp.abs(highest))
  _, exponent = jnp.frexp(largest)
  # Not below the exponents whose power of two is a normal number.
  exponent = jnp.maximum(exponent, -125)
  scaled = flat / jnp.ldexp(jnp.float32(1), exponent) * _HALF
  index = jnp.clip(jnp.floor(scaled).astype(jnp.int32) + _HALF, 0, BINS - 1)
  counts = jnp.zeros(BINS, jnp.int32).at[index].add(1)
  return Histogram(counts, exponent, lowest, highest)


class Statistics:
  """What is known of a tensor's values: true extremes, and a histogram.

  The distance from a number to a grid changes by no more than the number does.
  So the root mean squared error of any step is known to half a bin, which is
  max|x| / 2^16 at most.
  """

  def __init__(self) -> None:
    """Know nothing."""
    self._counts = np.zeros(BINS, np.int64)
    self._exponent = -125
    self.lowest = self.highest = 0.0
    self.size = 0

  @classmethod
  def of(cls, x: Any) -> "Statistics":
    """Gather those of one array."""
    made = cls()
    made.add(count(jnp.asarray(x)))
    return made

  def add(self, histogram: Histogram) -> None:
    """Add the values of one call."""
    counts = np.asarray(histogram.counts, np.int64)
    exponent = int(histogram.exponent)
    common = max(exponent, self._exponent) if self.size else exponent
    if self.size:
      self._counts = _coarser(self._counts, common - self._exponent)
    self._counts = self._counts + _coarser(counts, common - exponent)
    self._exponent = common
    lowest, highest = float(histogram.lowest), float(histogram.highest)
    self.lowest = min(self.lowest, lowest) if self.size else lowest
    self.highest = max(self.highest, highest) if self.size else highest
    self.size += int(counts.sum())
    self.__dict__.pop("_sums", None)

  @property
  def signed(self) -> bool:
    """Whether any value is negative."""
    return self.lowest < 0

  @property
  def largest(self) -> float:
    """The largest magnitude."""
    return max(abs(self.lowest), abs(self.highest))

  @property
  def second_moment(self) -> float:
    """The mean of the squares."""
    return float(self._sums[2][-1]) / max(self.size, 1)

  @functools.cached_property
  def _sums(self) -> tuple[np.ndarray, ...]:
    """Cumulative sums of one, x and x^2 over the bins, a zero before them."""
    centers = self._center(np.arange(BINS))
    moments = (self._counts * centers**power for power in range(3))
    return tuple(np.concatenate([[0.0], np.cumsum(m)]) for m in moments)

  @property
  def _width(self) -> float:
    return 2.0**self._exponent / _HALF

  def _center(self, index: np.ndarray) -> np.ndarray:
    return (index + 0.5 - _HALF) * self._width

  def errors(self, steps: np.ndarray, highest: int) -> np.ndarray:
    """Give the summed squared error of rounding all values, for all grids.

    Args:
      steps: positive, shape (n,).
      highest: number of codes of a grid, less one.

    Returns:
      float64, shape (n, highest + 1): by step, and by the zero point z of the
      codes -z to highest - z.
    """
    codes = np.arange(-highest, highest + 1, dtype=np.float64)
    values = np.multiply.outer(steps, codes)
    borders = np.multiply.outer(steps, np.append(codes, highest + 1) - 0.5)
    edges = np.rint(borders / self._width).clip(-_HALF, _HALF) + _HALF
    below = [total[edges.astype(np.int64)] for total in self._sums]

    def error(number: Any, first: Any, second: Any) -> np.ndarray:
      return values**2 * number - 2 * values * first + second

    # Of each code's own cell, and of all that lies below and above the cell.
    own = error(*(np.diff(total, axis=1) for total in below))
    clipped_low = error(*(total[:, :-1] for total in below))
    clipped_high = error(
      *(
        total[-1] - part[:, 1:]
        for total, part in zip(self._sums, below, strict=True)
      )
    )
    within = np.concatenate(
      [np.zeros((len(steps), 1)), np.cumsum(own, axis=1)], axis=1
    )
    low = np.arange(highest, -1, -1)
    high = low + highest
    return (  # type: ignore[no-any-return]
      clipped_low[:, low]
      + (within[:, high + 1] - within[:, low])
      + clipped_high[:, high]
    )


def _coarser(counts: np.ndarray, times: int) -> np.ndarray:
  """Double the width of bins so many times."""
  for _ in range(min(times, 18)):
    pairs = counts.reshape(-1, 2).sum(axis=1)
    counts = np.zeros_like(counts)
    counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
  return counts
