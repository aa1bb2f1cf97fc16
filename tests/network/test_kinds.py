"""Every kind of layer against quantizing by hand and calling `jax.lax`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.cost import macs
from asga_jax.network import kinds as layer_kinds
from asga_jax.quantization import fixing, layers, surgery

EVERYWHERE = [asga_jax.Rule(".*", weight_bits=(2, 4), activation_bits=(3, 8))]


def _init(key, shape, dtype=jnp.float32):
  """Draws from numpy: the initializers of `jax` take seconds to compile."""
  del key
  rng = np.random.default_rng(shape)
  return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), dtype)


def _x(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def _one(layer):
  """Wraps a layer in a network of its own."""

  class Net(nnx.Module):
    def __init__(self):
      self.layer = layer

    def __call__(self, x):
      return self.layer(x)

  return Net()


# The layer, its input, the product as `lax` makes it, and the kernel's axes of
# output features.
CASES = {
  "conv 1-D, dilated": (
    lambda r: nnx.Conv(
      4, 6, (3,), kernel_dilation=2, kernel_init=_init, rngs=r
    ),
    (2, 9, 4),
    lambda x, k: jax.lax.conv_general_dilated(
      x,
      k,
      (1,),
      "SAME",
      rhs_dilation=(2,),
      dimension_numbers=("NWC", "WIO", "NWC"),
    ),
    (2,),
  ),
  "conv 2-D, grouped, strided": (
    lambda r: nnx.Conv(
      4, 6, (3, 3), strides=2, feature_group_count=2, kernel_init=_init, rngs=r
    ),
    (2, 6, 6, 4),
    lambda x, k: jax.lax.conv_general_dilated(
      x,
      k,
      (2, 2),
      "SAME",
      feature_group_count=2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    (3,),
  ),
  "transposed 1-D": (
    lambda r: nnx.ConvTranspose(
      4, 6, (3,), strides=2, kernel_init=_init, rngs=r
    ),
    (2, 5, 4),
    lambda x, k: jax.lax.conv_transpose(x, k, (2,), "SAME"),
    (2,),
  ),
  "transposed 2-D, dilated": (
    lambda r: nnx.ConvTranspose(
      4,
      6,
      (3, 3),
      strides=(2, 1),
      kernel_dilation=(1, 2),
      padding="VALID",
      kernel_init=_init,
      rngs=r,
    ),
    (2, 5, 5, 4),
    lambda x, k: jax.lax.conv_transpose(
      x, k, (2, 1), "VALID", rhs_dilation=(1, 2)
    ),
    (3,),
  ),
  "transposed 2-D, transposed kernel": (
    lambda r: nnx.ConvTranspose(
      4,
      6,
      (3, 2),
      strides=2,
      padding=((1, 1), (0, 1)),
      transpose_kernel=True,
      kernel_init=_init,
      rngs=r,
    ),
    (2, 5, 5, 4),
    lambda x, k: jax.lax.conv_transpose(
      x, k, (2, 2), ((1, 1), (0, 1)), transpose_kernel=True
    ),
    (2,),
  ),
  "linear general": (
    lambda r: nnx.LinearGeneral(
      (3, 4), (2, 5), axis=(-2, -1), kernel_init=_init, rngs=r
    ),
    (2, 7, 3, 4),
    lambda x, k: jnp.einsum("btij,ijhd->bthd", x, k),
    (2, 3),
  ),
  "einsum": (
    lambda r: nnx.Einsum(
      "btd,hdk->bthk", (2, 6, 5), (2, 5), kernel_init=_init, rngs=r
    ),
    (3, 7, 6),
    lambda x, k: jnp.einsum("btd,hdk->bthk", x, k),
    (0, 2),
  ),
}


def _by_hand(x, step, lower, upper):
  # In float32 as the network: a value may lie on a border between codes.
  x, step = np.asarray(x, np.float32), np.asarray(step, np.float32)
  scaled = x * (np.float32(1) / step)
  return jnp.asarray(step * np.clip(np.round(scaled), lower, upper))


@pytest.mark.parametrize("name", CASES)
def test_a_layer_multiplies_what_was_quantized_by_hand(name):
  make, shape, product, outputs = CASES[name]
  x = _x(*shape)
  net = _one(make(nnx.Rngs(0)))
  model = fixing.fix_bits(
    surgery.make_searchable(net, x, rules=EVERYWHERE), {"layer": (2, 8)}
  )
  chosen = layers.product_of(model.layer)
  kernel = np.asarray(net.layer.kernel[...])
  steps = np.asarray(chosen.weight.parameter[...])[0]
  channels = [kernel.shape[axis] for axis in outputs]
  assert steps.shape == (np.prod(channels),)
  shaped = np.ones(kernel.ndim, int)
  shaped[list(outputs)] = channels
  # Two bits, narrow: -1, 0, 1; each output feature its own step.
  w = _by_hand(kernel, steps.reshape(shaped), -1, 1)
  step = np.asarray(chosen.activation.parameter[...])[0]
  lower, upper = np.array(chosen.activation.grids()[:2])[:, 0]
  assert lower < 0 < upper == lower + 255
  q = _by_hand(x, step, lower, upper)
  bias = 0 if net.layer.bias is None else net.layer.bias[...]
  want = product(q.astype(jnp.float32), w.astype(jnp.float32)) + bias
  np.testing.assert_allclose(model(x), want, atol=2e-5)
  assert len(np.unique(np.asarray(w))) > 3


@pytest.mark.parametrize("name", CASES)
def test_at_32_bits_a_searchable_layer_is_the_float_layer(name):
  make, shape, product, _ = CASES[name]
  x, net = _x(*shape), _one(make(nnx.Rngs(0)))
  rules = [asga_jax.Rule(".*", weight_bits=32, activation_bits=32)]
  model = surgery.make_searchable(net, x, rules=rules)
  np.testing.assert_array_equal(model(x), net(x))
  bias = 0 if net.layer.bias is None else net.layer.bias[...]
  np.testing.assert_allclose(
    net(x), product(x, net.layer.kernel[...]) + bias, atol=1e-5
  )


@pytest.mark.parametrize("name", CASES)
def test_macs_are_the_products_that_a_dense_matrix_would_need(name):
  """Counts by a Jacobian: output elements times inputs that each depends on.

  Of inputs of ones and kernels of ones each output is its number of products.
  """
  make, shape, product, _ = CASES[name]
  net = _one(make(nnx.Rngs(0)))
  found = macs.network_stats(net, shape[1:]).layers[0].macs
  ones = product(jnp.ones((1, *shape[1:])), jnp.ones(net.layer.kernel.shape))
  real = int(ones.sum())
  # Borders count as if nothing were cut off or padded.
  assert real <= found <= 2.2 * real
  if "conv" not in name and "transposed" not in name:
    assert found == real


def test_kernels_fold_into_matrices_and_back():
  kernel = _x(2, 3, 4, 5)
  for outputs in ((3,), (2,), (0, 2), (1, 3)):
    matrix = layer_kinds.to_matrix(kernel, outputs)
    rest = [i for i in range(4) if i not in outputs]
    order = [*rest, *outputs]
    want = np.transpose(np.asarray(kernel), order).reshape(matrix.shape)
    np.testing.assert_array_equal(matrix, want)
    back = layer_kinds.from_matrix(matrix, kernel.shape, outputs)
    np.testing.assert_array_equal(back, kernel)


INPUT = (2, 3, 4)


@pytest.mark.parametrize(
  ("layer", "given", "reason", "macs_of"),
  [
    (
      nnx.LinearGeneral(4, 5, batch_axis={0: 1}, rngs=nnx.Rngs(0)),
      lambda x: x[:1],
      r"batch axes \(0,\)",
      3 * 4 * 5,
    ),
    (
      nnx.Einsum("bti,tij->btj", (3, 4, 5), rngs=nnx.Rngs(0)),
      lambda x: x,
      "no plain proj",
      3 * 4 * 5,
    ),
    (
      nnx.ConvTranspose(4, 2, (3,), padding="CIRCULAR", rngs=nnx.Rngs(0)),
      lambda x: x,
      "circular",
      (3 + 2) * 3 * 4 * 2,
    ),
    (
      nnx.Embed(7, 4, rngs=nnx.Rngs(0)),
      lambda x: (x > 0).astype(jnp.int32),
      "looks rows up",
      0,
    ),
  ],
  ids=["batch axes", "einsum", "circular", "embed"],
)
def test_what_cannot_be_searched_says_why(layer, given, reason, macs_of):

  class Net(nnx.Module):
    def __init__(self):
      self.first = nnx.Linear(INPUT[-1], INPUT[-1], rngs=nnx.Rngs(0))
      self.layer = layer

    def __call__(self, x):
      return self.layer(given(self.first(x)))

  model = asga_jax.searchable(Net(), _x(*INPUT))
  found = asga_jax.not_searched(model)
  assert list(found) == ["layer"]
  assert re.search(reason, found["layer"])
  # Their own products count in float.
  stats = {layer.path: layer.macs for layer in asga_jax.layer_stats(model)}
  assert ("layer" in stats) == (macs_of > 0)
  assert stats.get("layer", 0) == macs_of


def test_attention_is_searched_through_its_projections():
  net = _one(
    nnx.MultiHeadAttention(
      num_heads=2, in_features=6, decode=False, rngs=nnx.Rngs(0)
    )
  )
  x = _x(2, 5, 6)
  model = surgery.make_searchable(net, x, rules=EVERYWHERE)
  names = [f"layer/{name}" for name in ("query", "key", "value", "out")]
  assert sorted(layers.quantized_layers(model)) == sorted(names)
  stats = macs.network_stats(net, (5, 6))
  assert [layer.macs for layer in stats.layers] == [5 * 6 * 6] * 4
  rules = [asga_jax.Rule(".*", weight_bits=32, activation_bits=32)]
  exact = surgery.make_searchable(net, x, rules=rules)
  np.testing.assert_allclose(exact(x), net(x), atol=1e-6)


class ByOwnCode(nnx.Module):
  """Calls its product by itself: two kernels of one shape, or one by name."""

  def __init__(self, named):
    self.kernel, self.other = nnx.Param(_x(8, 8)), nnx.Param(9 * _x(8, 8))
    self.dot_general, self.named = jax.lax.dot_general, named

  def __call__(self, x):
    how = {"dimension_numbers": (((1,), (0,)), ((), ()))}
    if self.named:
      return self.dot_general(lhs=x, rhs=self.kernel[...], **how)
    gate = self.dot_general(x, self.other[...], **how)
    return self.dot_general(x, self.kernel[...], **how) * jnp.tanh(gate)


def test_two_kernels_of_one_shape_are_no_layer():
  x = _x(16, 8)
  plain = nnx.Linear(8, 8, kernel_init=_init, rngs=nnx.Rngs(0))
  network = nnx.Sequential(plain, ByOwnCode(named=False))
  rule = asga_jax.Rule(".*", weight_bits=32, activation_bits=32)
  model = asga_jax.searchable(network, x, rules=[rule])
  assert "different kernels" in asga_jax.not_searched(model)["layers/1"]
  np.testing.assert_allclose(model(x), network(x), rtol=1e-5, atol=1e-5)


class Doubled(nnx.Linear):
  """Multiplies by what it makes of its kernel."""

  def __call__(self, x):
    product = (((1,), (0,)), ((), ()))
    return self.dot_general(x, 2 * self.kernel[...], product)


def test_a_network_of_shapes_has_no_kernels_to_compare():
  class Twice(nnx.Module):
    def __init__(self):
      self.layer = Doubled(8, 8, rngs=nnx.Rngs(0))

    def __call__(self, x):
      return self.layer(nnx.relu(self.layer(x)))

  (layer,) = macs.network_stats(nnx.eval_shape(Twice), (8,)).layers
  assert (layer.path, layer.macs, layer.weights) == ("layer", 128, 64)


def test_operands_may_come_by_name():
  x = _x(16, 8)
  network = _one(ByOwnCode(named=True))
  rule = asga_jax.Rule(".*", weight_bits=32, activation_bits=32)
  model = asga_jax.searchable(network, x, rules=[rule])
  assert list(layers.quantized_layers(model)) == ["layer"]
  np.testing.assert_allclose(model(x), network(x), rtol=1e-5, atol=1e-5)
