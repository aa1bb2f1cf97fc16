"""The radius and its average against closed forms in the math module."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asga_jax.sharpness import radius as radius_lib

RHO_MAX = 0.05


def f32(x):
  return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("gap", [1e-6, 0.03, 0.0408, 0.042, 0.1, 2.0, 1e6])
def test_adaptive_radius_is_the_paper_s_formula(gap):
  got = radius_lib.adaptive_radius(f32(gap), rho_max=f32(RHO_MAX), phi=2e-3)
  want = min(RHO_MAX, 2e-3 / math.log(gap + 1))
  assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("gap", [0.0, -1e-9, -0.3, -1.0, -7.0])
def test_adaptive_radius_is_the_largest_without_a_positive_gap(gap):
  got = radius_lib.adaptive_radius(f32(gap), rho_max=f32(RHO_MAX), phi=2e-3)
  assert got == f32(RHO_MAX)


@pytest.mark.parametrize(
  ("gap", "want"),
  [
    (0.02, math.log(1.02)),
    (0.3, RHO_MAX),
    (0.001, 0.01),
    (0.0, 0.01),
    (-5.0, 0.01),
  ],
)
def test_growing_radius_follows_the_gap_between_floor_and_ceiling(gap, want):
  got = radius_lib.growing_radius(
    f32(gap), rho_max=f32(RHO_MAX), rho_min=f32(0.01)
  )
  assert got == pytest.approx(want, rel=1e-5)


def test_a_radius_may_be_a_schedule():
  schedule = optax.cosine_decay_schedule(0.1, 10)
  for step in (0, 3, 10):
    got = radius_lib.at_step(schedule, jnp.int32(step), jnp.dtype(jnp.float32))
    want = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 10))
    assert got == pytest.approx(want, abs=1e-7)
    assert got.dtype == jnp.float32
    assert not got.weak_type


def test_average_takes_the_first_gap_whole_and_drops_what_is_not_finite():
  gaps = [math.nan, 0.4, math.inf, 0.2, -math.inf, 0.1]
  want = [0.0, 0.4, 0.4, 0.9 * 0.4 + 0.1 * 0.2]
  want += [want[-1], 0.9 * want[-1] + 0.1 * 0.1]
  average, seen = f32(0.0), jnp.int32(0)
  got = []
  for gap in gaps:
    average, seen = radius_lib.average_gap(average, f32(gap), seen, decay=0.9)
    got.append(float(average))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert seen == 3


def test_without_smoothing_the_newest_gap_is_kept_alone():
  average, _ = radius_lib.average_gap(
    f32(0.7), f32(0.2), jnp.int32(9), decay=0.0
  )
  assert average == f32(0.2)
