"""Whatever makes a layer's operands, files hold what is multiplied."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import nnx

import asga_jax
from asga_jax import policy as policy_lib
from asga_jax.deploy import integer, reference
from asga_jax.quantization import bit_choice, layers

X = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)


def _linear(rngs, kind=nnx.Linear, **settings):
  return kind(8, 8, rngs=rngs, **settings)


class Scaled(nnx.Linear):
  """Multiplies by three times its kernel."""

  def __call__(self, x):
    product = self.dot_general(
      x, 3 * self.kernel[...], (((x.ndim - 1,), (0,)), ((), ()))
    )
    return product + self.bias[...]

  def width(self):
    return self.out_features


class Own(nnx.Module):
  """A layer that is none of Flax's, with a product to exchange."""

  def __init__(self, rngs):
    self.matrix = nnx.Param(jax.random.normal(rngs.params(), (8, 8)) / 3)
    self.dot_general = jax.lax.dot_general

  def __call__(self, x):
    return self.dot_general(
      x, self.matrix[...], (((x.ndim - 1,), (0,)), ((), ()))
    )


class Masked(nnx.Module):
  """A convolution over a row, of which a mask takes two taps out."""

  def __init__(self, rngs):
    mask = jnp.ones((3, 1, 4)).at[0].set(0)
    self.conv = nnx.Conv(1, 4, (3,), mask=mask, rngs=rngs)
    self.conv.kernel[...] = jnp.where(mask > 0, self.conv.kernel[...], 10.0)

  def __call__(self, x):
    return self.conv(x[..., None]).mean(-1)


def _weight_norm(rngs):
  made = nnx.WeightNorm(_linear(rngs), rngs=rngs)
  made.layer_instance.kernel[...] *= 10
  return made


def _lora(rngs):
  made = nnx.LoRALinear(8, 8, lora_rank=2, rngs=rngs)
  made.lora.lora_b[...] = jax.random.normal(jax.random.key(3), (2, 8)) / 3
  return made


def _promoted(arrays, dtype=None):
  """A hook that rounds to bfloat16 and goes on in float32."""
  return tuple(
    None if x is None else x.astype(jnp.bfloat16).astype(jnp.float32)
    for x in arrays
  )


KINDS = {
  "weight norm": _weight_norm,
  "spectral norm": lambda rngs: nnx.SpectralNorm(_linear(rngs), rngs=rngs),
  "mask": Masked,
  "subclass": lambda rngs: _linear(rngs, Scaled),
  "LoRA": _lora,
  "own": Own,
  "bfloat16": lambda rngs: _linear(rngs, dtype=jnp.bfloat16),
  "hook": lambda rngs: _linear(rngs, promote_dtype=_promoted),
}


class Net(nnx.Module):
  def __init__(self, make):
    rngs = nnx.Rngs(0)
    self.first = _linear(rngs)
    self.middle = make(rngs)
    self.last = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.first(x))
    x = nnx.relu(self.middle(x)).astype(jnp.float32)
    return self.last(x)


def _fixed(name):
  net = Net(KINDS[name])
  net.eval()
  model = asga_jax.searchable(net, X, bits=(4, 8))
  layers_of = {
    path: policy_lib.LayerPolicy(
      4 if path.startswith("middle") else 8, 8, 64, 64, True
    )
    for path in layers.quantized_layers(model)
  }
  cost = dict.fromkeys(("bops", "size_bytes", "budget_used"), 1)
  cost["bops_convention"] = "all_layers_fixed_at_own_bits"
  policy = policy_lib.Policy("net", (8,), layers_of, cost, "bops=8bit", {})
  return net, model, policy, asga_jax.with_policy(model, policy)


SLOW = ("spectral norm", "bfloat16", "mask", "hook", "LoRA", "own", "subclass")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in KINDS
  ],
)
def test_every_way_out_computes_what_is_multiplied(name, tmp_path):
  net, model, policy, fixed = _fixed(name)
  assert any(path.startswith("middle") for path in policy.layers)
  kept = nnx.clone(fixed).middle
  assert type(kept) is type(net.middle)
  want = np.asarray(nnx.clone(fixed)(X), np.float32)
  top = np.abs(want).max()
  # Four bits of one layer: near the float network, but not it.
  apart = np.abs(want - np.asarray(nnx.clone(net)(X), np.float32)).max() / top
  assert 1e-4 < apart < 0.35

  whole = reference.integer_forward(fixed)
  # The network itself rounds what it adds up to bfloat16.
  rounding = 2e-2 if name == "bfloat16" else 2e-3
  np.testing.assert_allclose(whole(X), want, atol=rounding * top)

  file = tmp_path / "net.safetensors"
  asga_jax.save_packed(fixed, policy, file)
  loaded = asga_jax.load_packed(model, file)
  np.testing.assert_array_equal(np.asarray(loaded(X), np.float32), want)

  program = jax.export.deserialize(
    bytearray(asga_jax.export_stablehlo(fixed, (8,)))
  )
  np.testing.assert_allclose(program.call(X), want, atol=1e-4 * top)
  if name in ("bfloat16", "hook"):
    with pytest.raises(ValueError, match="bfloat16"):
      asga_jax.export_onnx(fixed, (8,))
    return
  made = asga_jax.export_onnx(fixed, (8,)).SerializeToString()
  session = onnxruntime.InferenceSession(
    made, providers=["CPUExecutionProvider"]
  )
  (found,) = session.run(None, {"image": X})
  np.testing.assert_allclose(found, want, atol=1e-4 * top)


def test_what_a_mask_takes_out_moves_no_step():
  steps = []
  for under in (0.0, 100.0):
    net = Net(Masked)
    mask = net.middle.conv.mask
    kernel = net.middle.conv.kernel[...]
    net.middle.conv.kernel[...] = jnp.where(mask > 0, kernel, under)
    model = asga_jax.searchable(net, X, bits=(8,))
    product = layers.product_of(model.middle.conv)
    steps.append(np.asarray(product.weight.parameter[...]))
  np.testing.assert_array_equal(*steps)


def test_methods_properties_and_private_attributes_stay():
  class Kept(nnx.Linear):
    def __init__(self, rngs):
      super().__init__(8, 8, rngs=rngs)
      self._gain = 2.0
      self.activation = nnx.relu
      self.weight = nnx.Param(jnp.ones(8))

    @property
    def half(self):
      return self.out_features // 2

  net = Net(Kept)
  model = asga_jax.searchable(net, X, bits=(8,))
  layer = model.middle
  assert (layer._gain, layer.half, layer.activation) == (2.0, 4, nnx.relu)
  np.testing.assert_array_equal(layer.weight[...], net.middle.weight[...])
  want = net(X)
  np.testing.assert_allclose(model(X), want, atol=0.05 * np.abs(want).max())


class Tied(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.first = _linear(rngs)
    self.a, self.b = _linear(rngs), _linear(rngs)
    self.b.kernel = self.a.kernel
    self.last = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    for layer in (self.first, self.a, self.b):
      x = nnx.relu(layer(x))
    return self.last(x)


def test_layers_that_share_a_kernel_share_its_bits(tmp_path):
  model = asga_jax.searchable(Tied(), X, bits=(2, 4, 8))
  a, b = layers.product_of(model.a), layers.product_of(model.b)
  assert a.weight is b.weight
  assert a.activation is not b.activation
  stats = {layer.path: layer.weights for layer in asga_jax.layer_stats(model)}
  assert (stats["a"], stats["b"]) == (64, 0)
  batches = [{"image": X, "label": np.arange(16) % 4}] * 2
  result = asga_jax.search_policy(
    model,
    batches,
    budget="bops=4bit",
    settings=asga_jax.SearchSettings(steps=2, preset="sgd"),
    progress=False,
  )
  policy = asga_jax.allocate(result)
  assert policy.layers["a"].weight_bits == policy.layers["b"].weight_bits
  fixed = asga_jax.with_policy(result.model, policy)
  codes = integer.integer_layers(fixed)
  np.testing.assert_array_equal(codes["a"].codes, codes["b"].codes)
  file = tmp_path / "net.safetensors"
  asga_jax.save_packed(fixed, policy, file)
  loaded = asga_jax.load_packed(model, file)
  assert loaded.a.kernel is loaded.b.kernel
  np.testing.assert_array_equal(loaded(X), fixed(X))


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e9, 1e30])
def test_inputs_of_any_unit(scale):
  net = Net(_linear)
  net.first.kernel[...] = net.first.kernel[...] / jnp.float32(scale)
  x = X * np.float32(scale)
  want = net(x)
  model = asga_jax.searchable(net, x, bits=(8,))
  apart = np.abs(model(x) - want).max() / np.abs(want).max()
  assert apart < 0.03

  def loss(steps):
    graphdef, others = rest
    return jnp.sum(nnx.merge(graphdef, steps, others)(x) ** 2)

  graphdef, steps, others = nnx.split(model, bit_choice.QuantizerParameter, ...)
  rest = graphdef, others
  for leaf in jax.tree.leaves(jax.grad(loss)(steps)):
    assert np.isfinite(leaf).all()
