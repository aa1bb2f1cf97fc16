"""Initial step sizes against published tables and searches over a grid."""

import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax.quantization import initial_steps


# Cai et al. 2017: the 2-bit levels are 0.538, 1.076 and 1.614; one level at
# the mean of a half Gaussian, sqrt(2 / pi).
@pytest.mark.parametrize(
  ("upper", "expected"),
  [(1, np.sqrt(2 / np.pi)), (3, 0.538), (7, 0.3217), (15, 0.185)],
)
def test_half_wave_gaussian_steps(upper, expected):
  step = initial_steps.gaussian_step(0, upper)
  np.testing.assert_allclose(step, expected, atol=1e-3)


# Max (1960), table 2: an odd number of levels has one at zero.
@pytest.mark.parametrize(
  ("upper", "expected"), [(1, 1.224), (2, 0.8430), (3, 0.6508), (7, 0.3534)]
)
def test_gaussian_steps(upper, expected):
  step = initial_steps.gaussian_step(-upper, upper)
  np.testing.assert_allclose(step, expected, atol=5e-4)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bit", [2, 4, 8])
def test_mse_step_is_near_the_optimum(bit, signed):
  rng = np.random.default_rng(8)
  # A long tail; neither rows nor columns fill the blocks they are padded to.
  sample = rng.standard_t(5, size=(1501, 3)) * np.array([1.0, 10.0, 0.01])
  sample = (sample if signed else np.abs(sample)).astype(np.float32)
  upper = 2 ** (bit - 1) - 1 if signed else 2**bit - 1
  lower = -upper if signed else 0
  steps = initial_steps.mse_step(
    jnp.asarray(sample), jnp.asarray([lower]), jnp.asarray([upper])
  )
  assert steps.shape == (1, 3)

  def error(column, step):
    code = np.clip(np.round(column / step), lower, upper)
    return np.mean((code * step - column) ** 2)

  for column, step in zip(sample.T, np.asarray(steps[0]), strict=True):
    grid = np.abs(column).max() / upper * np.linspace(0.005, 1, 600)
    best = min(error(column, candidate) for candidate in grid)
    assert error(column, step) < 1.1 * best


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 1), (9, 65), (1025,)])
def test_mse_step_of_odd_shapes(shape):
  sample = jnp.asarray(np.random.default_rng(9).normal(size=shape))
  lower, upper = jnp.asarray([-1, -127]), jnp.asarray([1, 127])
  steps = initial_steps.mse_step(sample, lower, upper)
  assert steps.shape == (2, *shape[1:])
  # At 8 bits little or nothing of a Gaussian is clipped, and half of the codes
  # or more are used.
  largest = np.abs(sample).max(axis=0)
  assert (steps[1] * 63.99 <= largest).all()
  assert (steps[1] * 127 >= 0.5 * largest).all()


@pytest.mark.parametrize(("bit", "highest"), [(8, 70), (8, 127), (4, 5)])
def test_a_tensor_on_a_grid_is_met_exactly(bit, highest):
  rng = np.random.default_rng(1)
  codes = rng.integers(-highest, highest + 1, (200, 3))
  codes[0] = highest
  sample = (codes * np.array([0.013, 1.0, 7e-5])).astype(np.float32)
  upper = 2 ** (bit - 1) - 1
  (steps,) = initial_steps.mse_step(
    jnp.asarray(sample), jnp.asarray([-upper]), jnp.asarray([upper])
  )
  np.testing.assert_allclose(steps, [0.013, 1.0, 7e-5], rtol=1e-5)
