"""Networks for text and sound, small, in the manner of published code."""

import jax
import jax.numpy as jnp
from flax import nnx


def rotate(x):
  """Rotary positions over [batch, time, heads, depth]."""
  time, half = x.shape[1], x.shape[-1] // 2
  angles = jnp.arange(time)[:, None] / 100.0 ** (jnp.arange(half) / half)
  sin, cos = jnp.sin(angles)[:, None], jnp.cos(angles)[:, None]
  first, second = x[..., :half], x[..., half:]
  return jnp.concatenate(
    [first * cos - second * sin, first * sin + second * cos], axis=-1
  )


class GroupedAttention(nnx.Module):
  """Four heads of queries share two of keys and values."""

  def __init__(self, features, *, rngs, heads=4, groups=2):
    depth = features // heads
    self.q = nnx.LinearGeneral(
      features, (heads, depth), use_bias=False, rngs=rngs
    )
    self.k = nnx.LinearGeneral(
      features, (groups, depth), use_bias=False, rngs=rngs
    )
    self.v = nnx.LinearGeneral(
      features, (groups, depth), use_bias=False, rngs=rngs
    )
    self.o = nnx.LinearGeneral(
      (heads, depth), features, axis=(-2, -1), use_bias=False, rngs=rngs
    )
    self.attention_fn = nnx.dot_product_attention

  def __call__(self, x):
    mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
    y = self.attention_fn(
      rotate(self.q(x)), rotate(self.k(x)), self.v(x), mask=mask
    )
    return self.o(y)


class Decoder(nnx.Module):
  """A language model whose embedding is its head."""

  def __init__(self, rngs, vocabulary=32, features=16):
    self.embed = nnx.Embed(vocabulary, features, rngs=rngs)
    self.blocks = nnx.List(
      [
        nnx.Dict(
          norm1=nnx.RMSNorm(features, rngs=rngs),
          attention=GroupedAttention(features, rngs=rngs),
          norm2=nnx.RMSNorm(features, rngs=rngs),
          gate=nnx.Linear(features, 32, use_bias=False, rngs=rngs),
          up=nnx.Linear(features, 32, use_bias=False, rngs=rngs),
          down=nnx.Linear(32, features, use_bias=False, rngs=rngs),
        )
        for _ in range(2)
      ]
    )
    self.norm = nnx.RMSNorm(features, rngs=rngs)

  def __call__(self, ids):
    x = self.embed(ids)
    for block in self.blocks:
      x = x + block["attention"](block["norm1"](x))
      y = block["norm2"](x)
      x = x + block["down"](nnx.silu(block["gate"](y)) * block["up"](y))
    return self.embed.attend(self.norm(x))[:, -1]


class Tagger(nnx.Module):
  """An LSTM over embedded words."""

  def __init__(self, rngs):
    self.embed = nnx.Embed(32, 8, rngs=rngs)
    self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(8, 16, rngs=rngs))
    self.head = nnx.Linear(16, 4, rngs=rngs)

  def __call__(self, ids):
    return self.head(self.rnn(self.embed(ids))[:, -1])


class Audio(nnx.Module):
  """Dilated 1-D convolutions over a wave, gated, with skips."""

  def __init__(self, rngs):
    self.stem = nnx.Conv(1, 8, (9,), strides=4, rngs=rngs)
    self.layers = nnx.List(
      [
        nnx.Conv(8, 16, (3,), kernel_dilation=2**i, padding="CAUSAL", rngs=rngs)
        for i in range(3)
      ]
    )
    self.mix = nnx.List([nnx.Conv(8, 8, (1,), rngs=rngs) for _ in range(3)])
    self.head = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    x = self.stem(x)
    total = 0
    for layer, mix in zip(self.layers, self.mix, strict=True):
      value, gate = jnp.split(layer(x), 2, axis=-1)
      y = mix(jnp.tanh(value) * jax.nn.sigmoid(gate))
      total, x = total + y, x + y
    return self.head(nnx.relu(total).mean(1))
