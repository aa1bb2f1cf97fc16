"""One-layer ONNX models against the layers themselves."""

import itertools
from functools import partial

import jax
import numpy as np
import onnx
import pytest
from flax import nnx
from onnx import numpy_helper

from asga_jax.deploy import layer_timing, timing
from asga_jax.deploy.onnx import layer as onnx_layer
from asga_jax.network import examples, kinds, program, reading

# How a layer is made, and the shape of its input.
LAYERS = {
  "padded": (partial(nnx.Conv, 4, 6, (3, 3), padding=1), (9, 8, 4)),
  "strided": (partial(nnx.Conv, 4, 6, (3, 3), strides=2), (9, 8, 4)),
  "lower": (
    partial(nnx.Conv, 4, 6, 2, strides=1, padding="SAME_LOWER"),
    (7, 4),
  ),
  "uneven": (
    partial(nnx.Conv, 4, 6, (3, 2), strides=(2, 1), padding=((2, 0), 1)),
    (9, 8, 4),
  ),
  "grouped": (
    partial(nnx.Conv, 8, 6, (3, 3), feature_group_count=2),
    (5, 5, 8),
  ),
  "depthwise": (
    partial(nnx.Conv, 6, 6, (3, 3), feature_group_count=6, strides=2),
    (7, 7, 6),
  ),
  "dilated": (
    partial(nnx.Conv, 4, 3, (3, 3), kernel_dilation=(2, 1)),
    (9, 9, 4),
  ),
  "circular": (
    partial(nnx.Conv, 3, 5, (3, 3), padding="CIRCULAR"),
    (6, 6, 3),
  ),
  "causal": (partial(nnx.Conv, 3, 5, 3, padding="CAUSAL"), (9, 3)),
  "valid": (partial(nnx.Conv, 3, 5, (2, 2), padding="VALID"), (6, 6, 3)),
  "linear": (partial(nnx.Linear, 7, 5), (7,)),
  "tokens": (partial(nnx.Linear, 7, 5), (11, 7)),
  "general": (
    partial(nnx.LinearGeneral, (2, 3), (4, 5), axis=(-2, -1)),
    (6, 2, 3),
  ),
  "einsum": (
    partial(nnx.Einsum, "btd,dhk->bthk", (6, 2, 3), (2, 3)),
    (4, 6),
  ),
}


def _layer(name):
  make, shape = LAYERS[name]
  return make(rngs=nnx.Rngs(0)), shape


def _first_call(layer, shape, batch=2):
  """Give what a layer multiplies, as it is described and as it is."""
  inputs = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
  copy = kinds.with_products(layer)
  calls = []

  def wrap(path, attribute, product):
    def watched(*args, **settings):
      output = product(*args, **settings)
      call = kinds.read_call(attribute, args, settings)
      axes = kinds.output_axes(attribute, product, call)
      calls.append((call.first, call.second, output, axes))
      return output

    return watched

  program.watch(copy, wrap)
  copy(inputs)
  traced = program.trace(layer, examples.as_example(inputs))
  return reading.read(traced).products[0], calls[0]


def _to_onnx(product, call):
  """Bring input, kernel and output of a call into ONNX's order of axes."""
  inputs, kernel, output, axes = call

  def channels_first(array):
    return np.moveaxis(np.asarray(array), -1, 1)

  if product.is_convolution:
    kernel = np.moveaxis(np.asarray(kernel), (-1, -2), (0, 1))
    return channels_first(inputs), kernel, channels_first(output)
  return (
    np.asarray(inputs).reshape(product.input_shape),
    np.asarray(kinds.to_matrix(kernel, axes)),
    np.asarray(output).reshape(product.output_shape),
  )


def _run(model, inputs):
  session = onnx_layer.open_session(model)
  (outputs,) = session.run(None, {"x": inputs})
  return outputs


def _constants(model):
  return {
    constant.name: numpy_helper.to_array(constant)
    for constant in model.graph.initializer
  }


@pytest.mark.parametrize("name", LAYERS)
def test_the_float_model_agrees_with_the_layer(name):
  layer, shape = _layer(name)
  found, call = _first_call(layer, shape)
  product = onnx_layer.product_of(found)
  inputs, kernel, outputs = _to_onnx(product, call)
  assert product.input_shape == inputs.shape
  assert product.kernel_shape == kernel.shape
  assert product.output_shape == outputs.shape
  model = onnx_layer.make_model(product, kernel, 32, 32)
  np.testing.assert_allclose(_run(model, inputs), outputs, atol=2e-6)


@pytest.mark.parametrize("name", ["padded", "depthwise", "tokens"])
@pytest.mark.parametrize(
  ("weight_bits", "activation_bits", "stored"),
  [
    (2, 3, 2),
    (3, 8, 4),
    (4, 4, 4),
    (6, 8, 8),
    (8, 8, 8),
    # A float input stays float, to about its rounding.
    (4, 32, 4),
    (8, 32, 8),
  ],
)
def test_the_quantized_model_agrees_with_its_steps_and_codes(
  name, weight_bits, activation_bits, stored
):
  layer, shape = _layer(name)
  product = onnx_layer.product_of(_first_call(layer, shape)[0])
  random = np.random.default_rng(3)
  kernel = random.standard_normal(product.kernel_shape, np.float32)
  model = onnx_layer.make_model(product, kernel, weight_bits, activation_bits)
  (weights,) = (x for x in model.graph.initializer if x.name == "w_stored")
  assert onnx.TensorProto.DataType.Name(weights.data_type) == f"INT{stored}"
  assert len(weights.raw_data) == -(-kernel.size * stored // 8)
  constants = _constants(model)
  codes = constants["w_stored"].astype(np.float32)
  assert np.abs(codes).max() == 2 ** (weight_bits - 1) - 1
  axis = 0 if product.is_convolution else 1
  shape = [-1 if i == axis else 1 for i in range(kernel.ndim)]
  steps = constants["w_step"].reshape(shape)
  assert np.abs(codes * steps - kernel).max() <= steps.max() / 2 * 1.001

  def multiply(x):
    if not product.is_convolution:
      return x @ (codes * steps)
    half = len(product.strides)
    return jax.lax.conv_general_dilated(
      x,
      codes * steps,
      product.strides,
      list(zip(product.pads[:half], product.pads[half:], strict=True)),
      rhs_dilation=product.dilations,
      feature_group_count=product.groups,
    )

  if activation_bits == 32:
    inputs = random.standard_normal(product.input_shape, np.float32)
    expected = np.asarray(multiply(inputs))
    np.testing.assert_allclose(_run(model, inputs), expected, atol=1e-5)
    return
  levels = 2**activation_bits
  inputs = random.integers(0, levels, product.input_shape).astype(np.uint8)
  floats = (inputs.astype(np.float32) - levels // 2) * constants["x_step"]
  assert -1 <= floats.min() < floats.max() < 1
  expected = np.asarray(multiply(floats)) / constants["y_step"] + levels // 2
  found = _run(model, inputs)
  assert found.dtype == np.uint8
  assert np.abs(found - np.clip(np.rint(expected), 0, 255)).max() <= 1


def _names(program):
  return [name for name, _ in program.kernels]


@pytest.mark.parametrize("name", ["padded", "depthwise", "tokens"])
def test_containers_up_to_eight_bits_are_one_integer_program(name):
  layer, shape = _layer(name)
  product = onnx_layer.product_of(_first_call(layer, shape)[0])
  made = {
    pair: layer_timing.compile_product(product, *pair)
    for pair in itertools.product((2, 4, 8, 32), (8, 32))
  }
  integer = "QLinearConv" if product.is_convolution else "QLinearMatMul"
  # Nothing of the change of layout is left.
  assert _names(made[8, 8]) == [integer]
  assert _names(made[32, 32]) == ["Conv" if "Conv" in integer else "MatMul"]
  for bits in (2, 4):
    assert made[bits, 8].kernels == made[8, 8].kernels
    assert made[bits, 32].kernels == made[32, 32].kernels
  # Weights that are to stay float do, whatever onnxruntime would gain.
  assert integer not in _names(made[32, 8])
  for each in made.values():
    assert timing.median_ms([each.run], 1, warm_up=0)[0] > 0
