import math

import numpy as np
import pytest

from asga_jax.report import radius_health as radius_lib


def test_share_at_max_counts_float32_rounding():
  radii = [np.float32(0.05), 0.05, 0.049, 0.01, 0.06]
  health = radius_lib.radius_health(radii, 0.05)
  assert health["share_at_max"] == 0.6
  assert health["steps"] == 5
  assert health["minimum"] == 0.01
  assert health["maximum"] == 0.06


def test_autocorrelation_of_an_alternation():
  # (-1)^t has r_1 = -(n - 1) / n.
  radii = 0.04 + 0.01 * (-1.0) ** np.arange(10)
  health = radius_lib.radius_health(radii, 0.05)
  assert health["lag1_autocorrelation"] == pytest.approx(-0.9, abs=1e-9)
  assert health["share_at_max"] == 0.5


def test_autocorrelation_of_an_autoregression():
  # x_t = a x_{t-1} + noise has r_1 = a; the standard error is below 0.01.
  rng = np.random.default_rng(0)
  values = np.zeros(10000)
  for t in range(1, values.size):
    values[t] = 0.7 * values[t - 1] + rng.normal()
  health = radius_lib.radius_health(1 + 0.01 * values, 2.0)
  assert health["lag1_autocorrelation"] == pytest.approx(0.7, abs=0.03)


def test_autocorrelation_by_hand():
  # Deviations -1, 0, 1: (-1 * 0 + 0 * 1) / 2 = 0.
  health = radius_lib.radius_health([1, 2, 3], 9)
  assert health["lag1_autocorrelation"] == pytest.approx(0, abs=1e-12)
  # Deviations -1, -1, 1, 1: (1 - 1 + 1) / 4.
  health = radius_lib.radius_health([1, 1, 3, 3], 9)
  assert health["lag1_autocorrelation"] == pytest.approx(0.25)


@pytest.mark.parametrize(
  "radii", [[0.05] * 9, [0.03], [0.03, 0.04], [0.03, None, 0.04], [], [None]]
)
def test_undefined_autocorrelation_is_nan(radii):
  health = radius_lib.radius_health(radii, 0.05)
  assert math.isnan(health["lag1_autocorrelation"])
  known = [r for r in radii if r is not None]
  assert health["steps"] == len(known)
  assert math.isnan(health["mean"]) == (not known)


def test_steps_without_a_radius_are_passed_over():
  # An alternation is one too where every third step alone has a radius.
  radii = 0.04 + 0.01 * (-1.0) ** np.arange(10)
  sparse = [x for radius in radii for x in (radius, None, float("nan"))]
  assert radius_lib.radius_health(sparse, 0.05) == radius_lib.radius_health(
    radii, 0.05
  )


@pytest.mark.parametrize("rho_max", [0, -1, float("nan")])
def test_a_bad_cap_is_refused(rho_max):
  with pytest.raises(ValueError, match="rho_max is"):
    radius_lib.radius_health([0.1], rho_max)


def test_a_matrix_is_refused():
  with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
    radius_lib.radius_health(np.ones((2, 2)), 1.0)
