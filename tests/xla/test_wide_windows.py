"""Convolutions wider than their input, against `jax.lax`."""

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp

from asga_jax.xla import lowering

pytestmark = pytest.mark.skipif(
  jax.default_backend() != "cpu", reason="the lowering is for CPU alone"
)


def _both(shape, window, **settings):
  """Value and gradients of a cubic of the output, ours and those of lax."""
  keys = jax.random.split(jax.random.key(0), 2)
  lhs = jax.random.normal(keys[0], (3, *shape, 4))
  rhs = jax.random.normal(keys[1], (*window, 4, 5))
  last = len(shape) + 1
  numbers = lax.ConvDimensionNumbers(
    (0, last, *range(1, last)),
    (last, last - 1, *range(last - 1)),
    (0, last, *range(1, last)),
  )
  results = []
  for function in (lowering.conv_general_dilated, lax.conv_general_dilated):

    def loss(lhs, rhs, function=function):
      out = function(lhs, rhs, dimension_numbers=numbers, **settings)
      return jnp.sum(out**3), out

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    text = str(jax.make_jaxpr(gradient)(lhs, rhs))
    results.append((jax.jit(gradient)(lhs, rhs), "conv_general" in text))
  return results


@pytest.mark.parametrize(
  ("shape", "window", "settings"),
  [
    ((2, 2), (3, 3), {"window_strides": (1, 1), "padding": "SAME"}),
    pytest.param(
      (1, 1),
      (3, 3),
      {"window_strides": (1, 1), "padding": ((1, 1), (2, 1))},
      marks=pytest.mark.slow,
    ),
    # Of its output alone: the gradient of the input is the slow one.
    ((4, 3), (3, 3), {"window_strides": (2, 2), "padding": "SAME"}),
    pytest.param(
      (4, 4),
      (3, 3),
      {"window_strides": (1, 2), "padding": "SAME", "rhs_dilation": (2, 2)},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      (7,),
      (9,),
      {"window_strides": (2,), "padding": ((4, 5),)},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      (2, 2, 2),
      (3, 3, 3),
      {"window_strides": (1, 1, 1), "padding": "SAME"},
      marks=pytest.mark.slow,
    ),
  ],
  ids=str,
)
def test_equals_lax_without_a_convolution(shape, window, settings):
  (ours, convolves), (theirs, _) = _both(shape, window, **settings)
  assert not convolves
  for our, their in zip(
    jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True
  ):
    scale = float(jnp.abs(their).max())
    np.testing.assert_allclose(our, their, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
  ("shape", "window", "padding"),
  [
    ((4, 4), (3, 3), "SAME"),
    ((2, 2), (1, 1), "SAME"),
    # Long along one axis: as fast as others, and its windows would be many.
    ((2, 32), (3, 3), "SAME"),
  ],
  ids=str,
)
def test_others_stay_convolutions(shape, window, padding):
  strides = {"window_strides": (1,) * len(shape), "padding": padding}
  (_, convolves), _ = _both(shape, window, **strides)
  assert convolves
