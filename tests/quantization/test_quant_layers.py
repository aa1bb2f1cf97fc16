"""Quantized layers against quantizing by hand and calling `jax.lax`."""

import draws
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asga_jax.network import kinds
from asga_jax.quantization import bit_choice, layers, methods

LSQ = methods.make_quantizer("lsq", weights=True, per_channel=True)
ACTIVATION = methods.make_quantizer("lsq", weights=False, per_channel=False)


def _choice(bits, sample, quantizer, signed):
  return bit_choice.BitChoice(
    bits,
    sample,
    quantizer=quantizer,
    signed=signed,
    temperature=bit_choice.Temperature(jnp.ones(())),
  )


def _quantize(layer, x, weight_bits, activation_bits):
  kernel = layer.kernel[...]
  quantized = kinds.with_products(layer)
  attribute = kinds.attribute_of(layer)
  product = layers.QuantizedProduct(
    kinds.get_product(layer, attribute),
    attribute=attribute,
    outputs=(kernel.ndim - 1,),
    stored="kernel",
    weight=_choice(
      weight_bits, kernel.reshape(-1, kernel.shape[-1]), LSQ, True
    ),
    activation=_choice(activation_bits, x.reshape(-1), ACTIVATION, True),
  )
  setattr(quantized, attribute, nnx.data(product))
  return quantized


def _steps(quantized):
  product = layers.product_of(quantized)
  return [
    choice.parameter[...][0] for choice in (product.activation, product.weight)
  ]


def _by_hand(x, step, lower, upper):
  x, step = np.asarray(x, np.float64), np.asarray(step, np.float64)
  return jnp.asarray(step * np.clip(np.round(x / step), lower, upper))


def _x(shape, seed=0):
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=shape), jnp.float32
  )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
  ("settings", "lax_settings"),
  [
    ({}, {}),
    ({"strides": 2}, {"window_strides": (2, 2)}),
    (
      {"feature_group_count": 4, "padding": "VALID"},
      {"feature_group_count": 4, "padding": "VALID"},
    ),
    ({"kernel_dilation": 2}, {"rhs_dilation": (2, 2)}),
    (
      {"input_dilation": 2, "padding": 1},
      {"lhs_dilation": (2, 2), "padding": ((1, 1), (1, 1))},
    ),
    (
      {"padding": ((1, 2), (0, 3)), "strides": (1, 3)},
      {"padding": ((1, 2), (0, 3)), "window_strides": (1, 3)},
    ),
  ],
  ids=["plain", "strided", "grouped", "dilated", "fractional", "padded"],
)
def test_convolution(settings, lax_settings, bias):
  layer = nnx.Conv(
    4,
    8,
    (3, 3),
    use_bias=bias,
    kernel_init=draws.from_numpy,
    rngs=nnx.Rngs(0),
    **settings,
  )
  if bias:
    layer.bias[...] = _x(8, seed=1)
  x = _x((2, 9, 8, 4))
  quantized = _quantize(layer, x, (3,), (4,))
  steps = _steps(quantized)
  expected = jax.lax.conv_general_dilated(
    _by_hand(x, steps[0], -8, 7),
    _by_hand(
      layer.kernel[...],
      steps[1],
      -3,
      3,
    ),
    **{"window_strides": (1, 1), "padding": "SAME", **lax_settings},
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  if bias:
    expected += layer.bias[...]
  np.testing.assert_allclose(quantized(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (6,), (2, 3, 6)])
def test_linear(shape, bias):
  layer = nnx.Linear(
    6, 3, use_bias=bias, kernel_init=draws.from_numpy, rngs=nnx.Rngs(0)
  )
  x = _x(shape)
  quantized = _quantize(layer, x, (2,), (8,))
  steps = _steps(quantized)
  expected = _by_hand(x, steps[0], -128, 127) @ _by_hand(
    layer.kernel[...],
    steps[1],
    -1,
    1,
  )
  np.testing.assert_allclose(quantized(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_mixtures_are_convolved_once():
  # sum_b p_b Q_b(x) times sum_c p_c Q_c(w), not a product a candidate.
  layer = nnx.Linear(6, 3, kernel_init=draws.from_numpy, rngs=nnx.Rngs(0))
  x = _x((5, 6))
  quantized = _quantize(layer, x, (2, 4, 8), (2, 4, 8))
  product = layers.product_of(quantized)
  expected = product.activation(x) @ product.weight(layer.kernel[...])
  np.testing.assert_allclose(quantized(x), expected, rtol=1e-6)
  jaxpr = str(jax.make_jaxpr(lambda x: quantized(x))(x))
  assert jaxpr.count("dot_general") == 1


def test_variables_and_product_are_those_of_the_layer():
  calls = []

  def product(*args, **kwargs):
    calls.append(kwargs["feature_group_count"])
    return jax.lax.conv_general_dilated(*args, **kwargs)

  layer = nnx.Conv(
    2, 2, (3,), feature_group_count=2, conv_general_dilated=product,
    kernel_init=draws.from_numpy, rngs=nnx.Rngs(0),
  )  # fmt: skip
  x = _x((1, 6, 2))
  quantized = _quantize(layer, x, (32,), (32,))
  assert type(quantized) is type(layer)
  np.testing.assert_array_equal(quantized(x), layer(x))
  assert calls == [2, 2]
  assert type(layer) is nnx.Conv


def test_bfloat16_layer():
  layer = nnx.Linear(
    6, 3, dtype=jnp.bfloat16, kernel_init=draws.from_numpy, rngs=nnx.Rngs(0)
  )
  x = _x((5, 6))
  quantized = _quantize(layer, x, (4,), (8,))
  assert quantized(x).dtype == jnp.bfloat16
  np.testing.assert_allclose(
    quantized(x).astype(jnp.float32), layer(x), atol=0.5
  )


def test_make_float():
  layer = nnx.Linear(6, 3, kernel_init=draws.from_numpy, rngs=nnx.Rngs(0))
  x = _x((5, 6))
  quantized = _quantize(layer, x, (2,), (2,))
  assert np.abs(quantized(x) - layer(x)).max() > 0.01
  layers.make_float(quantized)
  assert quantized.dot_general is jax.lax.dot_general
  np.testing.assert_array_equal(quantized(x), layer(x))


class _Doubled(nnx.Linear):
  def __call__(self, x):
    return 2 * super().__call__(x)


class _Wide(nnx.Linear):
  def __init__(self, features, rngs):
    super().__init__(
      features, 4 * features, kernel_init=draws.from_numpy, rngs=rngs
    )


def test_subclasses():
  x = _x((5, 2))
  wide = _Wide(2, nnx.Rngs(0))
  np.testing.assert_array_equal(_quantize(wide, x, (32,), (32,))(x), wide(x))
  doubled = _Doubled(2, 3, kernel_init=draws.from_numpy, rngs=nnx.Rngs(0))
  np.testing.assert_array_equal(
    _quantize(doubled, x, (32,), (32,))(x), doubled(x)
  )
