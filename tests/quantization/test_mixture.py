"""The formula of the mixture, on numbers that are worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax.quantization import mixture

# Codes -1, 0 and 1 at a step of 0.5, and -7 to 7 at 0.25.
BITS = (2, 4, 32)
STEPS = np.float32([0.5, 0.25, 1.0])
X = np.float32([-0.9, 0.1, 0.3, 0.6])
QUANTIZED = np.float32(
  [[-0.5, 0.0, 0.5, 0.5], [-1.0, 0.0, 0.25, 0.5], [-0.9, 0.1, 0.3, 0.6]]
)
PROBABILITIES = np.float32([0.25, 0.5, 0.25])
G = np.float32([1.0, 2.0, -3.0, 4.0])


def _grids():
  return mixture.make_grids(jnp.asarray(BITS), jnp.asarray(True), narrow=True)


def _gradients(**settings):
  def mix(*primals):
    return mixture.mixture(*primals, _grids(), **settings)

  return jax.vjp(mix, X, STEPS, PROBABILITIES)[1](G)


def test_it_is_the_mean_of_the_quantized_tensors():
  found = mixture.mixture(X, STEPS, PROBABILITIES, _grids())
  np.testing.assert_allclose(found, PROBABILITIES @ QUANTIZED, rtol=1e-6)


@pytest.mark.slow
def test_the_tensor_gets_the_gradient_of_candidates_that_do_not_clip_it():
  # At 2 bits, the first and the last element are clipped.
  expected = G * np.float32([0.75, 1.0, 1.0, 0.75])
  np.testing.assert_allclose(_gradients()[0], expected, rtol=1e-6)


@pytest.mark.parametrize("step_gradient", ["full", "clip"])
def test_steps_get_the_code_where_it_clips_and_else_what_rounding_adds(
  step_gradient,
):
  of_2 = np.float32([-1.0, 0.0 - 0.2, 1.0 - 0.6, 1.0])
  of_4 = np.float32([-4.0 + 3.6, 0.0 - 0.4, 1.0 - 1.2, 2.0 - 2.4])
  if step_gradient == "clip":
    of_2[1:3], of_4[:] = 0, 0
  expected = PROBABILITIES * [G @ of_2, G @ of_4, 0.0]
  found = _gradients(step_gradient=step_gradient)[1]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_probabilities_get_the_product_with_each_quantized_tensor():
  np.testing.assert_allclose(_gradients()[2], QUANTIZED @ G, rtol=1e-5)


def test_an_offset_moves_every_code():
  # At a step of 0.5 the values are -0.25, 0.25 and 0.75, without a zero.
  grids = mixture.Grids(*(values[:1] for values in _grids()))
  found = mixture.mixture(X, STEPS[:1], jnp.ones(1), grids, offset=0.5)
  np.testing.assert_allclose(found, [-0.25, 0.25, 0.25, 0.75])
