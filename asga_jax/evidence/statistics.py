"""Differences of policies on the same images, over seeds."""

import functools
from typing import NamedTuple

import numpy as np
from scipy import stats

DRAWS = 2000


class Interval(NamedTuple):
  """A mean with its 95 % interval."""

  value: float
  low: float
  high: float

  def points(self) -> str:
    """Say it in points of per cent."""
    value, low, high = (f"{100 * x:.2f}" for x in self)
    return f"{value} ({low} to {high})"


def paired(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Interval:
  """Estimate the mean difference of two policies on the same images.

  Images are resampled, and seeds by themselves. A few seeds that are resampled
  spread less than the seeds that could have been: their deviations are taken
  larger, by what Student's t has beyond the normal and by the root of n/(n-1).

  Args:
    first: which images it gets right, shape (seeds, images), bool or float.
    second: likewise; of as many seeds, which are paired, or of one.
    seed: of the bootstrap.

  Returns:
    The mean, and its 95 % interval: of images and of seeds. Of one seed it is
    of images alone.

  Raises:
    ValueError: other images, or seeds that cannot be paired.

  Source: Efron and Tibshirani, "An introduction to the bootstrap" (1993),
  chapter 13; both factors resampled, as in Owen, "The pigeonhole bootstrap"
  (2007).
  """
  counts = sorted((len(first), len(second)))
  if first.shape[1:] != second.shape[1:] or (
    counts[0] != counts[1] and counts[0] != 1
  ):
    raise ValueError(
      f"shapes {first.shape} and {second.shape} cannot be paired; expected"
      " (seeds, images), of as many seeds or of one"
    )
  apart = first.astype(np.float32) - second.astype(np.float32)
  seeds, images = apart.shape
  # Of each draw.
  means = _weights(images, seed) @ apart.mean(axis=0) / images
  if seeds > 1:
    of_seed = apart.mean(axis=1, dtype=np.float64)
    larger = stats.t.ppf(0.975, seeds - 1) / stats.norm.ppf(0.975)
    larger *= (seeds / (seeds - 1)) ** 0.5
    draw = np.random.default_rng(seed + 1)
    chosen = of_seed[draw.integers(seeds, size=(DRAWS, seeds))].mean(axis=1)
    means = means + larger * (chosen - of_seed.mean())
  low, high = np.percentile(means, (2.5, 97.5))
  return Interval(float(apart.mean(dtype=np.float64)), float(low), float(high))


@functools.lru_cache(maxsize=8)
def _weights(images: int, seed: int) -> np.ndarray:
  """Draw how often each image is in each sample: shape (draws, images)."""
  draw = np.random.default_rng(seed)
  drawn = draw.multinomial(images, np.full(images, 1 / images), size=DRAWS)
  return drawn.astype(np.float32)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
  """Compute Spearman's correlation; NaN of fewer than two, or of constants."""
  if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
    return float("nan")
  return float(stats.spearmanr(first, second).statistic)
