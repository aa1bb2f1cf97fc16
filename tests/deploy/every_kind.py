"""A network with every kind of layer, and how to fix one at some bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import asga_jax
from asga_jax import policy as policy_lib
from asga_jax.deploy import integer
from asga_jax.quantization import fixing, layers, surgery

ALL_BITS = (2, 3, 4, 5, 6, 7, 8)
IMAGES = jax.random.normal(jax.random.key(0), (3, 6, 6, 4))


def draw(key, shape, dtype=jnp.float32):
  """Draw weights in NumPy, since JAX compiles a program for each shape."""
  del key
  generator = np.random.default_rng(shape)
  return jnp.asarray(generator.normal(size=shape) / 4, dtype)


def fill(make):
  """Build a network of parameters and statistics alone, by `draw`."""
  graphdef, state = nnx.split(nnx.eval_shape(make))

  def value(path, like):
    drawn = draw(None, like.shape, like.dtype)
    return abs(drawn) + 1 if "var" in path else drawn

  flat = nnx.to_flat_state(nnx.as_pure(state))
  drawn = [(path, value(path, like)) for path, like in flat]
  return nnx.merge(graphdef, nnx.from_flat_state(drawn))


class EveryKind(nnx.Module):
  """Convolutions of all forms, projections of all kinds, and attention."""

  def __init__(self, rngs):
    given = {"rngs": rngs, "kernel_init": draw, "bias_init": draw}

    def conv(inputs, outputs, **settings):
      return nnx.Conv(inputs, outputs, (3, 3), rngs=rngs, **settings)

    mask = jax.random.bernoulli(jax.random.key(1), 0.5, (3, 3, 6, 6))
    self.plain = conv(4, 6, padding=1, use_bias=False)
    self.norm = nnx.BatchNorm(6, rngs=rngs)
    self.grouped = conv(6, 6, feature_group_count=3, kernel_dilation=(2, 1))
    self.depthwise = conv(6, 6, feature_group_count=6)
    self.depthwise_norm = nnx.BatchNorm(6, rngs=rngs)
    self.masked = conv(6, 6, mask=mask.astype(jnp.float32))
    self.transposed = nnx.ConvTranspose(
      6, 5, (3, 2), strides=(2, 1), padding="VALID", **given
    )
    self.turned = nnx.ConvTranspose(
      5, 6, (2, 2), padding="VALID", transpose_kernel=True, **given
    )
    self.line = nnx.Conv(6, 6, 3, strides=2, **given)
    self.attention = nnx.MultiHeadAttention(2, 6, decode=False, **given)
    self.split = nnx.LinearGeneral(6, (2, 3), **given)
    self.swap = nnx.Einsum("...hd,hdab->...ba", (2, 3, 4, 5), **given)
    self.join = nnx.LinearGeneral((5, 4), 6, axis=(-2, -1), **given)
    self.head = nnx.Linear(6, 3, **given)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.plain(x)))
    x = nnx.relu(self.grouped(x))
    x = nnx.relu(self.depthwise_norm(self.depthwise(x)))
    x = self.turned(self.transposed(self.masked(x)))
    x = self.line(x.reshape(len(x), -1, 6))
    x = self.join(self.swap(self.split(self.attention(x))))
    return self.head(x.mean(axis=1))


class Kinds(nnx.Module):
  """A layer of each kind, all of kernels of 24 summed and 6 output features."""

  def __init__(self, rngs):
    given = {"rngs": rngs, "kernel_init": draw, "bias_init": draw}
    self.conv = nnx.Conv(8, 6, 3, **given)
    self.transposed = nnx.ConvTranspose(8, 6, 3, **given)
    self.linear = nnx.Linear(24, 6, **given)
    self.general = nnx.LinearGeneral((4, 6), (2, 3), axis=(-2, -1), **given)
    self.einsum = nnx.Einsum("nhd,hdab->nab", (4, 6, 2, 3), **given)

  def __call__(self, x):
    x = x.reshape(-1, 24)
    pair = x.reshape(-1, 4, 6)
    line = x.reshape(-1, 3, 8)
    layers = [self.general(pair), self.einsum(pair), self.linear(x)]
    layers += [self.conv(line), self.transposed(line)]
    return sum(y.reshape(len(x), -1, 6).mean(axis=1) for y in layers)


@functools.cache
def searchable(
  quantizer="hwgq", per_channel=True, bits=(4, 5, 6, 8, 32), network=EveryKind
):
  """Give every tensor of the network these candidates; do not change it."""
  model = network(nnx.Rngs(0))
  for _, module in nnx.iter_modules(model):
    if isinstance(module, nnx.BatchNorm):
      shape = module.mean.shape
      for i, name in enumerate(("mean", "var", "scale", "bias")):
        drawn = draw(None, (*shape, i + 1))[:, i]
        getattr(module, name)[...] = 1 + drawn
  rules = [
    asga_jax.Rule(".*", weight_bits=bits, activation_bits=bits),
    asga_jax.Rule(".*", weight_bits=bits, activation_bits=bits, products=True),
  ]
  return surgery.make_searchable(
    model,
    IMAGES,
    rules=rules if network is EveryKind else rules[:1],
    weight_quantizer=quantizer.removesuffix("_plus"),
    activation_quantizer=quantizer,
    per_channel=per_channel,
  )


def fix(model, weight_bits, activation_bits=8, **others):
  """Fix the network at these bits, but some layers at others."""
  bits = {
    path: others.get(path, (weight_bits, activation_bits))
    for path in layers.quantized_layers(model)
  }
  fixed = fixing.fix_bits(model, bits)
  fixed.eval()
  return fixed


def policy_of(model):
  """Make a policy of what a model is fixed at."""
  found = integer.integer_layers(model)
  return policy_lib.Policy(
    model="test",
    input_shape=(6, 6, 4),
    layers={
      path: policy_lib.LayerPolicy(
        weight_bits=layer.weight_bits,
        activation_bits=layer.activation.bits,
        macs=1,
        weights=0 if layer.codes is None else layer.codes.size,
        searched=True,
      )
      for path, layer in found.items()
    },
    cost={
      "bops": 0,
      "bops_convention": "",
      "size_bytes": 0,
      "budget_used": 0.0,
    },
    budget="size=1MB",
    provenance={},
  )
