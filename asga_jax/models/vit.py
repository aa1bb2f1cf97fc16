"""Vision Transformers (Dosovitskiy et al. 2021, arXiv 2010.11929).

In the sizes of DeiT (Touvron et al. 2021, arXiv 2012.12877), with the fixed
sine and cosine positions of Beyer et al. 2022 (arXiv 2205.01580), so that a
network takes images of any size. Module paths, the same for every patch size
and class count: `patches`, `blocks/I/norm1`, `query`, `key`, `value`, `out`,
`norm2`, `expand`, `project`; last `norm`, `head`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from asga_jax.models import layers


def positions(height: int, width: int, features: int) -> jax.Array:
  """Give sines and cosines of rows and columns, [height * width, features]."""
  frequencies = 1e4 ** -jnp.linspace(0.0, 1.0, features // 4)
  rows, columns = jnp.mgrid[:height, :width].reshape(2, -1)
  angles = [rows[:, None] * frequencies, columns[:, None] * frequencies]
  return jnp.concatenate([f(a) for a in angles for f in (jnp.sin, jnp.cos)], 1)


class Block(nnx.Module):
  """Self-attention and two linear layers, each beside a shortcut."""

  def __init__(
    self,
    features: int,
    heads: int,
    linear: Callable[..., nnx.Linear],
    norm: Callable[..., nnx.LayerNorm],
  ):
    self.heads = heads
    # Under this name its products can be quantized, as Flax's own can.
    self.attention_fn = nnx.dot_product_attention
    self.norm1 = norm(features)
    self.query = linear(features, features)
    self.key = linear(features, features)
    self.value = linear(features, features)
    self.out = linear(features, features)
    self.norm2 = norm(features)
    self.expand = linear(features, 4 * features)
    self.project = linear(4 * features, features)

  def attend(self, x: jax.Array) -> jax.Array:
    """Map [N, T, features] to the same by attention over T."""
    query, key, value = (
      layer(x).reshape(*x.shape[:2], self.heads, -1)
      for layer in (self.query, self.key, self.value)
    )
    mixed = self.attention_fn(query, key, value)
    return self.out(mixed.reshape(x.shape))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Map [N, T, features] to the same."""
    x = x + self.attend(self.norm1(x))
    return x + self.project(nnx.gelu(self.expand(self.norm2(x))))


class ViT(nnx.Module):
  """Patches, transformer blocks, a norm, and a head on the class token."""

  def __init__(
    self,
    num_classes: int,
    *,
    features: int,
    heads: int,
    depth: int = 12,
    stem: str = "imagenet",
    patch: int | None = None,
    in_channels: int = 3,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    conv_general_dilated: Callable[
      ..., jax.Array
    ] = jax.lax.conv_general_dilated,
    rngs: nnx.Rngs,
  ):
    """Build the network; without dropout.

    Args:
      num_classes: outputs of the head.
      features: of a token, a multiple of 4 and of `heads`.
      heads: of the attention.
      depth: number of blocks.
      stem: 'imagenet' for patches of 16x16, 'small' for patches of 4x4.
      patch: another side of a patch.
      in_channels: channels of the images.
      dtype: dtype of the computation; None takes it from inputs and params.
      param_dtype: dtype of the parameters.
      conv_general_dilated: what `nnx.Conv` convolves with.
      rngs: stream of random keys.

    Raises:
      ValueError: if `stem` is neither, or sizes do not fit.
    """
    if features % 4 or features % heads:
      raise ValueError(
        f"features={features} with heads={heads}; expected a multiple of 4 "
        "and of heads"
      )
    side = 16 if layers.check_stem(stem) == "imagenet" else 4
    self.patch = side if patch is None else patch
    if self.patch < 1:
      raise ValueError(f"patch={patch}; expected at least 1")
    types: dict[str, Any] = {
      "dtype": dtype,
      "param_dtype": param_dtype,
      "rngs": rngs,
    }
    small = nnx.initializers.truncated_normal(0.02)
    linear: Callable[..., nnx.Linear] = functools.partial(
      nnx.Linear, kernel_init=small, **types
    )
    norm: Callable[..., nnx.LayerNorm] = functools.partial(
      nnx.LayerNorm, epsilon=1e-6, **types
    )
    self.patches = nnx.Conv(
      in_channels,
      features,
      (self.patch, self.patch),
      strides=self.patch,
      padding="VALID",
      kernel_init=nnx.initializers.normal(
        1 / math.sqrt(in_channels * self.patch**2)
      ),
      conv_general_dilated=conv_general_dilated,
      **types,
    )
    self.token = nnx.Param(jnp.zeros((features,), param_dtype))
    self.blocks = nnx.List(
      [Block(features, heads, linear, norm) for _ in range(depth)]
    )
    self.norm = norm(features)
    self.head = linear(features, num_classes)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Map images [N, H, W, in_channels] to logits [N, num_classes].

    Raises:
      ValueError: H or W is not a multiple of the patch.
    """
    if images.shape[1] % self.patch or images.shape[2] % self.patch:
      raise ValueError(
        f"images of {images.shape[1:3]}; expected multiples of the patch, "
        f"{self.patch}"
      )
    x = self.patches(images)
    count, height, width, features = x.shape
    x = x.reshape(count, height * width, features)
    x = x + positions(height, width, features).astype(x.dtype)
    token = jnp.broadcast_to(
      self.token[...].astype(x.dtype), (count, 1, features)
    )
    x = jnp.concatenate([token, x], axis=1)
    for block in self.blocks:
      x = block(x)
    return self.head(self.norm(x)[:, 0])


def vit_ti(num_classes: int = 1000, **settings: Any) -> ViT:
  """Build ViT-Ti: 192 features, 3 heads; see `ViT` for the settings.

  With patches of 16x16 and 1000 classes 5,679,592 parameters: those of DeiT-Ti
  but for its learned positions.
  """
  return ViT(num_classes, features=192, heads=3, **settings)


def vit_s(num_classes: int = 1000, **settings: Any) -> ViT:
  """Build ViT-S: 384 features, 6 heads; see `ViT` for the settings.

  With patches of 16x16 and 1000 classes 21,975,016 parameters: those of DeiT-S
  but for its learned positions.
  """
  return ViT(num_classes, features=384, heads=6, **settings)
