"""95 % intervals of shares and of differences between two networks."""

import math
from typing import NamedTuple

import numpy as np

_DEVIATIONS = 1.959964  # of a normal, for 95 %


class Estimate(NamedTuple):
  """A share, or a difference of two, as measured on a few images."""

  value: float
  low: float
  high: float
  images: int

  @property
  def half_width(self) -> float:
    """Half of the interval."""
    return (self.high - self.low) / 2

  def images_for(self, half_width: float) -> int:
    """How many images alike would make the interval that narrow."""
    return math.ceil(self.images * (self.half_width / half_width) ** 2)

  def percent(self) -> str:
    """Say it in points, with its interval."""
    ends = " to ".join(f"{100 * x:.2f}" for x in (self.low, self.high))
    return f"{100 * self.value:.2f} points (95 % interval {ends})"


def difference(first: np.ndarray, second: np.ndarray) -> Estimate:
  """Estimate the difference of two shares on the same images.

  Args:
    first: which images the one network gets right, shape (images,), bool.
    second: likewise the other.

  Returns:
    The share of the first minus that of the second. The interval does not
    shrink to nothing where the two networks agree on every image.

  Source: Agresti and Min, "Simple improved confidence intervals for comparing
  matched proportions" (2005).
  """
  count = len(first)
  gained = float(np.sum(first & ~second))
  lost = float(np.sum(~first & second))
  # Half an image more in each of the four cells.
  whole = count + 2
  middle = (gained - lost) / whole
  spread = math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / whole) / whole
  reach = _DEVIATIONS * spread
  value = (gained - lost) / count
  return Estimate(value, middle - reach, middle + reach, count)


def share(hits: np.ndarray) -> Estimate:
  """Estimate a share of images.

  Args:
    hits: which images count, shape (images,), bool.

  Source: Wilson, "Probable inference, the law of succession, and statistical
  inference" (1927).
  """
  count, value = len(hits), float(np.mean(hits))
  square = _DEVIATIONS**2
  middle = (value + square / (2 * count)) / (1 + square / count)
  reach = (
    _DEVIATIONS
    / (1 + square / count)
    * math.sqrt(value * (1 - value) / count + square / (4 * count**2))
  )
  return Estimate(value, middle - reach, middle + reach, count)
