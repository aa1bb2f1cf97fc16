"""Intervals against closed forms and SciPy's bootstrap."""

import numpy as np
import pytest
from scipy import stats

from asga_jax.evidence import statistics


def _hits(seeds, images, share, seed):
  return np.random.default_rng(seed).random((seeds, images)) < share


def test_one_seed_is_the_bootstrap_of_paired_differences():
  first, second = _hits(1, 800, 0.7, 0), _hits(1, 800, 0.6, 1)
  found = statistics.paired(first, second)
  apart = first[0].astype(float) - second[0]
  wanted = stats.bootstrap(
    (apart,), np.mean, method="percentile", rng=np.random.default_rng(2)
  ).confidence_interval
  assert found.value == pytest.approx(apart.mean())
  # Both are drawn: a fifth of the standard error.
  near = 0.2 * apart.std() / 800**0.5
  assert found.low == pytest.approx(wanted.low, abs=near)
  assert found.high == pytest.approx(wanted.high, abs=near)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_few_seeds_that_differ_by_themselves_are_covered_too(seeds):
  """Against Student's t, where images are all alike within a seed."""
  draw = np.random.default_rng(seeds)
  held, widths = 0, []
  for _ in range(300):
    gains = draw.normal(size=seeds)
    first = np.tile(gains[:, None], (1, 20))
    found = statistics.paired(first, np.zeros((1, 20)))
    held += found.low <= 0 <= found.high
    wanted = 2 * stats.t.ppf(0.975, seeds - 1) * gains.std(ddof=1)
    widths.append((found.high - found.low) / (wanted / seeds**0.5))
  # Of 300, three standard errors; a mean of few values is no normal one.
  assert 0.9 < held / 300 <= 1
  assert 0.7 < np.median(widths) < 1.3


def test_policies_that_agree_differ_by_nothing():
  hits = _hits(3, 100, 0.5, 0)
  assert statistics.paired(hits, hits) == statistics.Interval(0, 0, 0)


def test_one_policy_stands_for_all_seeds():
  first, second = _hits(3, 200, 0.7, 0), _hits(1, 200, 0.6, 1)
  repeated = statistics.paired(first, second.repeat(3, axis=0))
  assert statistics.paired(first, second) == repeated


def test_a_95_percent_interval_holds_95_percent():
  draw = np.random.default_rng(0)
  held = 0
  for _ in range(200):
    # One weight matrix for all: what is drawn anew are the images.
    found = statistics.paired(
      draw.random((1, 300)) < 0.7, draw.random((1, 300)) < 0.6
    )
    held += found.low <= 0.1 <= found.high
  # Of a binomial of 200 at 0.95, all but one in ten thousand.
  assert 178 <= held <= 200


@pytest.mark.parametrize("seeds", [(2, 3), (3, 2)])
def test_seeds_that_cannot_be_paired_are_refused(seeds):
  given = [_hits(count, 10, 0.5, 0) for count in seeds]
  with pytest.raises(ValueError, match="cannot be paired; expected"):
    statistics.paired(*given)


def test_rank_correlation():
  up = np.arange(5.0)
  assert statistics.rank_correlation(up, up**3) == pytest.approx(1)
  assert statistics.rank_correlation(up, -up) == pytest.approx(-1)
  assert np.isnan(statistics.rank_correlation(up, np.ones(5)))
