"""The convolutions for CPUs against `jax.lax`."""

import functools
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax import numpy as jnp

from asga_jax import models
from asga_jax.training import lowering

pytestmark = pytest.mark.skipif(
  jax.default_backend() != "cpu", reason="the lowering is for CPU alone"
)

_NHWC = ("NHWC", "HWIO", "NHWC")


def _arrays(batch=2, height=9, width=8, channels=6, window=(3, 3)):
  keys = jax.random.split(jax.random.key(0), 2)
  lhs = jax.random.normal(keys[0], (batch, height, width, channels))
  rhs = jax.random.normal(keys[1], (*window, 1, channels))
  return lhs, rhs


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

    results.append(
      jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(lhs, rhs)
    )
  return results


def _uses_convolution(lhs, rhs, **settings):
  text = str(
    jax.make_jaxpr(
      lambda lhs, rhs: lowering.conv_general_dilated(lhs, rhs, **settings)
    )(lhs, rhs)
  )
  return "conv_general_dilated" in text


@pytest.mark.parametrize(
  ("settings", "arrays"),
  [
    ({"window_strides": (1, 1), "padding": "SAME"}, {}),
    ({"window_strides": (2, 2), "padding": "SAME"}, {}),
    ({"window_strides": (2, 2), "padding": "SAME_LOWER"}, {}),
    ({"window_strides": (1, 2), "padding": "VALID"}, {"batch": 1}),
    ({"window_strides": (2, 1), "padding": ((1, 1), (0, 2))}, {}),
    ({"window_strides": (3, 3), "padding": ((1, 1), (1, 1))}, {}),
    ({"window_strides": (1, 1), "padding": ((-1, 0), (1, -1))}, {}),
    (
      {"window_strides": (2, 1), "padding": "SAME", "rhs_dilation": (2, 3)},
      {"height": 12},
    ),
    ({"window_strides": (1, 1), "padding": "SAME"}, {"window": (5, 2)}),
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
  assert not _uses_convolution(
    lhs, rhs, dimension_numbers=_NHWC, feature_group_count=6, **settings
  )
  ours, theirs = _both(settings, lhs, rhs)
  (_, our_out), our_grads = ours
  (_, their_out), their_grads = theirs
  np.testing.assert_allclose(our_out, their_out, rtol=1e-5, atol=1e-5)
  for our, their in zip(our_grads, their_grads, strict=True):
    scale = float(jnp.abs(their).max())
    np.testing.assert_allclose(our, their, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
  "settings",
  [
    {"window_strides": (1, 1), "padding": "SAME"},
    {"window_strides": (2, 2), "padding": ((1, 1), (1, 1))},
    {"window_strides": (2, 3), "padding": "VALID"},
    {"window_strides": (2, 1), "padding": ((2, 0), (-1, 1))},
    {"window_strides": (2, 1), "padding": "SAME", "rhs_dilation": (1, 2)},
  ],
  ids=str,
)
@pytest.mark.parametrize("window", [(3, 3), (1, 1), (2, 5)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_dense_equals_lax_in_value_and_gradients(settings, window, batch):
  keys = jax.random.split(jax.random.key(1), 2)
  lhs = jax.random.normal(keys[0], (batch, 11, 12, 5))
  rhs = jax.random.normal(keys[1], (*window, 5, 7))

  def both(function):
    def loss(lhs, rhs):
      out = function(lhs, rhs, dimension_numbers=_NHWC, **settings)
      return jnp.sum(out**3), out

    gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(gradients)(lhs, rhs)

  (_, our_out), ours = both(lowering.conv_general_dilated)
  (_, their_out), theirs = both(lax.conv_general_dilated)
  np.testing.assert_allclose(our_out, their_out, rtol=1e-5, atol=1e-5)
  for our, their in zip(ours, theirs, strict=True):
    scale = float(jnp.abs(their).max())
    np.testing.assert_allclose(our, their, rtol=0, atol=1e-5 * scale)


def test_gradients_of_dense_convolutions_are_in_the_layout_of_the_cpu():
  lhs, rhs = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))

  def loss(lhs, rhs):
    return jnp.sum(
      lowering.conv_general_dilated(
        lhs, rhs, (2, 2), "SAME", dimension_numbers=_NHWC
      )
      ** 2
    )

  text = jax.jit(jax.grad(loss, (0, 1))).lower(lhs, rhs).as_text()
  layouts = re.findall(r"dim_numbers = (.*?), window", text)
  assert layouts == ["[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"] * 3


def test_networks_are_given_the_fast_form():
  model = models.constructor("resnet8")(
    10,
    stem="small",
    conv_general_dilated=lax.conv_general_dilated,
    rngs=nnx.Rngs(0),
  )
  own = functools.partial(lax.conv_general_dilated)
  model.stem.conv_general_dilated = own
  fast = lowering.with_fast_convolutions(model)
  products = [
    module.conv_general_dilated
    for _, module in nnx.iter_modules(fast)
    if isinstance(module, nnx.Conv)
  ]
  assert products.count(lowering.conv_general_dilated) == len(products) - 1
  assert fast.stem.conv_general_dilated is own
  assert model.head is not fast.head
  assert all(
    module.conv_general_dilated is not lowering.conv_general_dilated
    for _, module in nnx.iter_modules(model)
    if isinstance(module, nnx.Conv)
  )


def test_curvature_equals_that_of_lax():
  lhs, rhs = _arrays(height=5, width=5)

  def hessian_product(function):
    def loss(rhs):
      out = function(
        lhs,
        rhs,
        (2, 2),
        "SAME",
        dimension_numbers=_NHWC,
        feature_group_count=6,
      )
      return jnp.sum(out**4)

    return jax.jit(
      lambda rhs: jax.jvp(jax.grad(loss), (rhs,), (jnp.cos(rhs),))[1]
    )(rhs)

  ours = hessian_product(lowering.conv_general_dilated)
  theirs = hessian_product(lax.conv_general_dilated)
  scale = float(jnp.abs(theirs).max())
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
  ("lhs_shape", "rhs_shape", "settings"),
  [
    ((2, 6, 6, 4), (3, 3, 4, 8), {"feature_group_count": 1}),
    ((2, 6, 6, 4), (3, 3, 2, 8), {"feature_group_count": 2}),
    ((2, 6, 6, 4), (3, 3, 1, 8), {"feature_group_count": 4}),
    (
      (2, 6, 6, 4),
      (3, 3, 1, 4),
      {"feature_group_count": 4, "lhs_dilation": (2, 1)},
    ),
    (
      (2, 6, 6, 4),
      (3, 3, 1, 4),
      {"feature_group_count": 4, "preferred_element_type": jnp.float32},
    ),
    (
      (2, 4, 6, 6),
      (4, 1, 3, 3),
      {"feature_group_count": 4, "dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    ),
  ],
  ids=["dense", "grouped", "multiplier", "transposed", "preferred", "NCHW"],
)
def test_any_other_convolution_is_that_of_lax(lhs_shape, rhs_shape, settings):
  lhs = jax.random.normal(jax.random.key(0), lhs_shape)
  rhs = jax.random.normal(jax.random.key(1), rhs_shape)
  settings = {
    "window_strides": (1, 1),
    "padding": "SAME" if "lhs_dilation" not in settings else ((1, 1), (1, 1)),
    "dimension_numbers": _NHWC,
    **settings,
  }
  assert _uses_convolution(lhs, rhs, **settings)
  np.testing.assert_array_equal(
    lowering.conv_general_dilated(lhs, rhs, **settings),
    lax.conv_general_dilated(lhs, rhs, **settings),
  )


def test_other_platforms_get_lax(monkeypatch):
  lhs, rhs = _arrays()
  settings = {
    "window_strides": (1, 1),
    "padding": "SAME",
    "dimension_numbers": _NHWC,
    "feature_group_count": 6,
  }
  assert not _uses_convolution(lhs, rhs, **settings)
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert _uses_convolution(lhs, rhs, **settings)


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
  assert not _uses_convolution_in(ours, images)


def _uses_convolution_in(layer, images):
  graph, state = nnx.split(layer)
  text = str(jax.make_jaxpr(lambda s, x: nnx.merge(graph, s)(x))(state, images))
  return "conv_general_dilated" in text


def test_narrow_types_are_summed_in_float32():
  lhs, rhs = _arrays()
  narrow = (lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16))

  def convolve(lhs, rhs):
    return lowering.conv_general_dilated(
      lhs,
      rhs,
      (1, 1),
      "SAME",
      dimension_numbers=_NHWC,
      feature_group_count=6,
    )

  out = convolve(*narrow)
  assert out.dtype == jnp.bfloat16
  wide = convolve(*(array.astype(jnp.float32) for array in narrow))
  np.testing.assert_array_equal(out, wide.astype(jnp.bfloat16))


def test_gradients_of_narrow_1x1_kernels_are_summed_in_float32():
  keys = jax.random.split(jax.random.key(2), 3)
  lhs = jax.random.uniform(keys[0], (64, 16, 16, 4), jnp.bfloat16)
  rhs = jax.random.normal(keys[1], (1, 1, 4, 3), jnp.bfloat16)
  grad = jax.random.uniform(keys[2], (64, 16, 16, 3), jnp.bfloat16)

  def slope(lhs, rhs, grad):
    def convolve(rhs):
      return lowering.conv_general_dilated(
        lhs, rhs, (1, 1), "SAME", dimension_numbers=_NHWC
      )

    return jax.vjp(convolve, rhs)[1](grad)[0]

  found = jax.jit(slope)(lhs, rhs, grad)
  assert found.dtype == jnp.bfloat16
  exact = np.einsum(
    "nhwc,nhwo->co", np.asarray(lhs, np.float64), np.asarray(grad, np.float64)
  )
  # Half a unit in the last of bfloat16's eight places, and a little.
  np.testing.assert_allclose(
    np.asarray(found[0, 0], np.float64), exact, rtol=1.1 * 2**-9
  )


def test_a_sharded_batch_is_not_gathered():
  if jax.device_count() < 2:
    pytest.skip("one device; XLA_FLAGS=--xla_force_host_platform_device_count")
  mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
  spec = jax.sharding.PartitionSpec("data")
  sharding = jax.sharding.NamedSharding(mesh, spec)
  lhs, rhs = _arrays()

  def loss(lhs, rhs):
    out = lowering.conv_general_dilated(
      lhs,
      rhs,
      (1, 1),
      "SAME",
      dimension_numbers=_NHWC,
      feature_group_count=6,
    )
    return jnp.sum(out**2)

  step = jax.jit(jax.grad(loss, argnums=(0, 1)))
  args = (jax.device_put(lhs, sharding), rhs)
  text = step.lower(*args).compile().as_text()
  assert "all-gather" not in text
  assert "all-reduce" in text
