"""Sums by halves against exact ones."""

import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax.xla import reductions

# Even and odd lengths, one that is halved to an odd one, no element, a scalar.
SHAPES = ((4096, 3), (5003,), (3, 3, 1030), (), (0, 5), (1, 1), (8192,))


@pytest.mark.parametrize(
  ("platform", "devices"), [("cpu", 1), ("cpu", 8), ("gpu", 1)]
)
def test_total_is_the_exact_sum(platform, devices):
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
  exact = math.fsum(float(x) for array in arrays for x in array.ravel())
  scale = math.fsum(abs(float(x)) for array in arrays for x in array.ravel())
  with mock.patch.multiple(
    jax, default_backend=lambda: platform, device_count=lambda: devices
  ):
    # A function of its own: jax keeps what it traced of another one.
    traced = jax.jit(lambda arrays: reductions.total(arrays)).trace(arrays)
  # An array that is split over devices would be gathered by that.
  halves = platform == "cpu" and devices == 1
  assert ("split" in str(traced.jaxpr)) == halves
  found = traced.lower().compile()(arrays)
  assert found.shape == ()
  assert found.dtype == jnp.float32
  assert abs(float(found) - exact) < 1e-6 * scale


@pytest.mark.parametrize(
  ("until", "length"), [(0, 3), (3, 3), (6, 6), (11, 6), (12, 12), (99, 12)]
)
def test_halves_are_added_until_the_axis_is_short_or_odd(until, length):
  x = jnp.arange(2 * 12 * 5.0).reshape(2, 12, 5)
  found = reductions.add_halves(x, 1, until)
  assert found.shape == (2, length, 5)
  np.testing.assert_array_equal(found.sum(1), x.sum(1))
