"""The depthwise convolution for CPUs against `jax.lax`."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax import numpy as jnp

from asga_jax.xla import lowering

pytestmark = pytest.mark.skipif(
  jax.default_backend() != "cpu", reason="the lowering is for CPU alone"
)

_NHWC = ("NHWC", "HWIO", "NHWC")


def _arrays(batch=2, height=9, width=8, channels=6, window=(3, 3)):
  rng = np.random.default_rng(0)
  return tuple(
    jnp.asarray(rng.standard_normal(shape, np.float32))
    for shape in ((batch, height, width, channels), (*window, 1, channels))
  )


def _uses_convolution(function, *args):
  return "conv_general_dilated" in str(jax.make_jaxpr(function)(*args))


def _convolve(lhs, rhs, function=lowering.conv_general_dilated, stride=1):
  return function(
    lhs,
    rhs,
    (stride, stride),
    "SAME",
    dimension_numbers=_NHWC,
    feature_group_count=6,
  )


def _both(settings, lhs, rhs):
  """Value and gradients of a cubic of the output, by the two functions."""
  results = []
  for function in (lowering.conv_general_dilated, lax.conv_general_dilated):

    def loss(lhs, rhs, function=function):
      out = function(
        lhs,
        rhs,
        dimension_numbers=_NHWC,
        feature_group_count=lhs.shape[-1],
        **settings,
      )
      return jnp.sum(out**3), out

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    ours = function is lowering.conv_general_dilated
    assert ours != _uses_convolution(gradient, lhs, rhs)
    results.append(jax.jit(gradient)(lhs, rhs))
  return results


@pytest.mark.parametrize(
  ("settings", "arrays"),
  [
    pytest.param(
      *({"window_strides": (1, 1), "padding": "SAME"}, {}),
      marks=pytest.mark.slow,
    ),
    ({"window_strides": (2, 2), "padding": "SAME"}, {}),
    pytest.param(
      *({"window_strides": (2, 2), "padding": "SAME_LOWER"}, {}),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      *({"window_strides": (1, 2), "padding": "VALID"}, {"batch": 1}),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      *({"window_strides": (2, 1), "padding": ((1, 1), (0, 2))}, {}),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      *({"window_strides": (3, 3), "padding": ((1, 1), (1, 1))}, {}),
      marks=pytest.mark.slow,
    ),
    ({"window_strides": (1, 1), "padding": ((-1, 0), (1, -1))}, {}),
    (
      {"window_strides": (2, 1), "padding": "SAME", "rhs_dilation": (2, 3)},
      {"height": 12},
    ),
    pytest.param(
      *({"window_strides": (1, 1), "padding": "SAME"}, {"window": (5, 2)}),
      marks=pytest.mark.slow,
    ),
    ({"window_strides": (2, 2), "padding": "SAME"}, {"height": 1, "width": 1}),
    # Some positions of the kernel meet nothing but padding.
    (
      {"window_strides": (1, 1), "padding": ((3, 3), (2, 0))},
      {"height": 2, "width": 1, "window": (5, 3)},
    ),
    (
      {
        "window_strides": (2, 1),
        "padding": ((4, 5), (3, 4)),
        "rhs_dilation": (4, 2),
      },
      {"height": 3, "width": 2},
    ),
  ],
  ids=str,
)
def test_equals_lax_in_value_and_gradients(settings, arrays):
  lhs, rhs = _arrays(**arrays)
  ours, theirs = _both(settings, lhs, rhs)
  (_, our_out), our_grads = ours
  (_, their_out), their_grads = theirs
  np.testing.assert_allclose(our_out, their_out, rtol=1e-5, atol=1e-5)
  for our, their in zip(our_grads, their_grads, strict=True):
    scale = np.abs(their).max()
    np.testing.assert_allclose(our, their, rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
def test_curvature_equals_that_of_lax():
  lhs, rhs = _arrays(height=5, width=5)

  def hessian_product(function):
    def loss(rhs):
      return jnp.sum(_convolve(lhs, rhs, function, stride=2) ** 4)

    return jax.jit(
      lambda rhs: jax.jvp(jax.grad(loss), (rhs,), (jnp.cos(rhs),))[1]
    )(rhs)

  ours = hessian_product(lowering.conv_general_dilated)
  theirs = hessian_product(lax.conv_general_dilated)
  scale = float(jnp.abs(theirs).max())
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
def test_layer_calls_it_with_all_that_flax_passes():
  def layer(function):
    return nnx.Conv(
      6,
      6,
      (3, 3),
      strides=2,
      padding=1,
      feature_group_count=6,
      conv_general_dilated=function,
      rngs=nnx.Rngs(0),
    )

  images, _ = _arrays()
  ours = layer(lowering.conv_general_dilated)
  theirs = layer(lax.conv_general_dilated)
  np.testing.assert_allclose(ours(images), theirs(images), atol=1e-5)
  # Flax folds further batch axes, and adds one where there is none.
  np.testing.assert_allclose(ours(images[0]), theirs(images[0]), atol=1e-5)
  graph, state = nnx.split(ours)
  assert not _uses_convolution(
    lambda state, images: nnx.merge(graph, state)(images), state, images
  )


def test_narrow_types_are_summed_in_float32():
  lhs, rhs = _arrays()
  narrow = (lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16))

  out = _convolve(*narrow)
  assert out.dtype == jnp.bfloat16
  wide = _convolve(*(array.astype(jnp.float32) for array in narrow))
  np.testing.assert_array_equal(out, wide.astype(jnp.bfloat16))


def test_a_sharded_batch_is_not_gathered():
  if jax.device_count() < 2:
    pytest.skip("one device; XLA_FLAGS=--xla_force_host_platform_device_count")
  mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
  spec = jax.sharding.PartitionSpec("data")
  sharding = jax.sharding.NamedSharding(mesh, spec)
  lhs, rhs = _arrays()

  def loss(lhs, rhs):
    return jnp.sum(_convolve(lhs, rhs) ** 2)

  step = jax.jit(jax.grad(loss, argnums=(0, 1)))
  args = (jax.device_put(lhs, sharding), rhs)
  text = step.lower(*args).compile().as_text()
  assert "all-gather" not in text
  assert "all-reduce" in text
