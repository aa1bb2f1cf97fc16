"""Integer kernels against quantization written out."""

import jax.numpy as jnp
import numpy as np
import pytest
from every_kind import ALL_BITS, IMAGES, EveryKind, Kinds, fix, searchable
from flax import nnx

from asga_jax.deploy import integer
from asga_jax.network import kinds as layer_kinds
from asga_jax.network import program
from asga_jax.quantization import (
  bit_choice,
  calibration,
  layers,
  methods,
  quantizers,
)


@pytest.fixture(scope="module")
def every_kind():
  return searchable()


def _fake_quantized(layer):
  """Quantize a kernel by the plain function, without the mixture."""
  product = layers.product_of(layer)
  (bits,) = product.weight.candidates()
  quantizer = product.weight.quantizer
  kernel = layer.kernel[...]
  if getattr(layer, "mask", None) is not None:
    kernel = kernel * layer.mask
  lower, upper = quantizers.levels(
    jnp.int32(bits), jnp.bool(True), quantizer.narrow
  )
  matrix = layer_kinds.to_matrix(kernel, product.outputs)
  step = product.weight.steps()[0]
  result = quantizers.fake_quantize(
    quantizer.transform(matrix), step, lower, upper, offset=quantizer.offset
  )
  return layer_kinds.from_matrix(result, kernel.shape, product.outputs)


def _kernel_layers(model):
  modules = {program.path_name(p): m for p, m in nnx.iter_modules(model)}
  return {
    path: modules[path]
    for path, product in layers.quantized_layers(model).items()
    if product.has_kernel
  }


@pytest.mark.parametrize(
  "per_channel", [True, pytest.param(False, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("quantizer", ["lsq", "pact", "dorefa", "hwgq"])
def test_codes_times_steps_are_the_kernel(quantizer, per_channel):
  model = searchable(quantizer, per_channel, ALL_BITS, Kinds)
  for bits in ALL_BITS:
    fixed = fix(model, bits)
    found = integer.integer_layers(fixed)
    kernels = _kernel_layers(fixed)
    assert {found[path].kind for path in kernels} == {
      "Conv",
      "ConvTranspose",
      "Linear",
      "Einsum",
    }
    for path, layer in kernels.items():
      made = found[path]
      assert made.codes.dtype == np.int8
      assert made.codes.shape == layer.kernel.shape
      # A signed grid of all codes, or of all but the lowest.
      lowest = -(2 ** (bits - 1)) + (quantizer != "dorefa")
      assert lowest <= made.codes.min() < made.codes.max() < 2 ** (bits - 1)
      assert made.weight_step.dtype == np.float32
      assert made.weight_step.size == (
        layers.product_of(layer).weight.parameter[...].size
        if per_channel
        else 1
      )
      expected = np.asarray(_fake_quantized(layer))
      np.testing.assert_array_equal(made.dequantized(), expected)
      whole = made.integers
      assert whole.dtype == (
        np.int16 if quantizer == "dorefa" and bits == 8 else np.int8
      )
      np.testing.assert_array_equal(made.integer_step * whole, expected)


def test_a_layer_tells_its_grids(every_kind):
  fixed = fix(every_kind, 4, 5)
  found = integer.integer_layers(fixed)
  assert list(found) == list(layers.quantized_layers(fixed))
  plain = found["plain"]
  assert (plain.weight_bits, plain.activation.bits) == (4, 5)
  assert (plain.activation.lower, plain.activation.upper) == (-16, 15)
  assert plain.activation.signed
  choice = layers.product_of(fixed.plain).activation
  assert plain.activation.step == choice.parameter[...][0]
  assert plain.is_integer
  # It reads a ReLU.
  grouped = found["grouped"].activation
  assert (grouped.lower, grouped.upper, grouped.signed) == (0, 31, False)


def test_products_have_two_activations(every_kind):
  fixed = fix(every_kind, 4, 6)
  product = integer.integer_layers(fixed)["attention/attention_fn/pv"]
  assert (product.kind, product.codes) == ("Product", None)
  assert (product.activation.bits, product.second.bits) == (6, 4)
  # Probabilities have no sign, values do.
  assert (product.activation.lower, product.activation.upper) == (0, 63)
  assert (product.second.lower, product.second.upper) == (-8, 7)


def test_masked_weights_are_zero(every_kind):
  fixed = fix(every_kind, 4)
  made = integer.integer_layers(fixed)["masked"]
  assert not made.codes[np.asarray(fixed.masked.mask) == 0].any()
  np.testing.assert_array_equal(
    made.dequantized(), _fake_quantized(fixed.masked)
  )


def test_float_operands_stay_float(every_kind):
  fixed = fix(every_kind, 4, plain=(32, 8), head=(4, 32), grouped=(32, 32))
  found = integer.integer_layers(fixed)
  plain = found["plain"]
  assert plain.codes.dtype == np.float32
  np.testing.assert_array_equal(plain.dequantized(), fixed.plain.kernel[...])
  assert plain.weight_step == 1
  assert not plain.activation.is_float
  assert found["head"].activation.is_float
  assert found["head"].codes.dtype == np.int8
  integers = {path for path, layer in found.items() if layer.is_integer}
  assert set(found) - integers == {"plain", "head", "grouped"}
  with pytest.raises(ValueError, match="'plain' has no bound"):
    plain.largest_accumulator()


@pytest.mark.parametrize("quantizer", ["lsq", "dorefa"])
def test_a_kernel_of_zeros(quantizer):
  fixed = fix(searchable(quantizer, True, ALL_BITS, Kinds), 3)
  fixed.conv.kernel[...] = jnp.zeros_like(fixed.conv.kernel[...])
  made = integer.integer_layers(fixed)["conv"]
  assert not made.codes.any()
  np.testing.assert_array_equal(made.dequantized(), _fake_quantized(fixed.conv))


def test_the_bound_holds_and_is_reached():
  layer = integer.IntegerLayer(
    path="x",
    kind="Linear",
    weight_bits=3,
    codes=np.array([[3, -1], [2, -3], [0, -3]], np.int8),
    weight_step=np.ones((), np.float32),
    offset=0.0,
    outputs=(1,),
    activation=integer.Grid(4, np.ones((), np.float32), 0, 15),
    second=None,
  )
  assert layer.largest_accumulator() == 15 * 7
  assert np.abs(np.full(3, 15) @ layer.codes).max() == 15 * 7


def test_what_is_not_fixed_is_named(every_kind):
  with pytest.raises(ValueError, match=r"'.*' is not fixed: its weight has"):
    integer.integer_layers(every_kind)
  with pytest.raises(ValueError, match=r"EveryKind.*no quantized layers"):
    integer.integer_layers(EveryKind(nnx.Rngs(0)))


def test_an_activation_quantized_by_channels_is_named():
  fixed = fix(searchable("lsq", True, ALL_BITS, Kinds), 4)
  quantizer = methods.LSQ(per_channel=True)
  sample = calibration.weight_sample(IMAGES.reshape(-1, 4), quantizer)
  product = layers.product_of(fixed.conv)
  product.activation = bit_choice.BitChoice(
    (4,),
    sample,
    quantizer=quantizer,
    signed=True,
    temperature=product.activation.temperature,
  )
  with pytest.raises(ValueError, match="'conv' quantizes an activation by"):
    integer.integer_layers(fixed)
