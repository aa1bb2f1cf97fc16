"""VGG-16 with batch norm (Simonyan & Zisserman 2015, arXiv 1409.1556).

Module paths, the same for every stem and class count: `features/I` and
`norms/I` for the 13 convolutions, then `hidden1`, `hidden2`, `head`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from asga_jax.models import layers

# Channels of the convolutions of each stage; each ends with max pooling.
_STAGES = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)


class VGG(nnx.Module):
  """Stages of 3x3 convolutions and pooling, and three linear layers."""

  def __init__(
    self,
    num_classes: int,
    *,
    stem: str,
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
      stem: 'imagenet', which ends in a 7x7 map, as 224x224 images do, or
        'small', which ends in a 1x1 map, as 32x32 images do.
      in_channels: channels of the images.
      dtype: dtype of the computation; None takes it from inputs and params.
      param_dtype: dtype of the parameters.
      conv_general_dilated: what `nnx.Conv` convolves with.
      rngs: stream of random keys.

    Raises:
      ValueError: if `stem` is neither.
    """
    types: dict[str, Any] = {
      "dtype": dtype,
      "param_dtype": param_dtype,
      "rngs": rngs,
    }
    conv: Callable[..., nnx.Conv] = functools.partial(
      layers.conv, conv_general_dilated=conv_general_dilated, **types
    )
    self.side = 7 if layers.check_stem(stem) == "imagenet" else 1
    features, norms = [], []
    inputs = in_channels
    for stage in _STAGES:
      for outputs in stage:
        features.append(conv(inputs, outputs, 3))
        norms.append(layers.batch_norm(outputs, **types))
        inputs = outputs
    self.features = nnx.List(features)
    self.norms = nnx.List(norms)
    self.hidden1 = nnx.Linear(inputs * self.side**2, 4096, **types)
    self.hidden2 = nnx.Linear(4096, 4096, **types)
    self.head = nnx.Linear(4096, num_classes, **types)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Map images [N, H, W, in_channels] to logits [N, num_classes].

    The last map is averaged to 7x7 or 1x1.

    Raises:
      ValueError: H or W does not divide into that map after five poolings.
    """
    x = images
    index = 0
    for stage in _STAGES:
      for _ in stage:
        x = nnx.relu(self.norms[index](self.features[index](x)))
        index += 1
      x = nnx.max_pool(x, (2, 2), strides=(2, 2))
    count, height, width, channels = x.shape
    side = self.side
    if not height or not width or height % side or width % side:
      raise ValueError(
        f"images of {images.shape[1:3]} end in a map of {(height, width)}; "
        f"expected a multiple of {side} (32 x {side} pixels a side)"
      )
    x = x.reshape(count, side, height // side, side, width // side, channels)
    x = x.mean(axis=(2, 4)).reshape(count, -1)
    x = nnx.relu(self.hidden1(x))
    return self.head(nnx.relu(self.hidden2(x)))


def vgg16(
  num_classes: int = 1000, *, stem: str = "imagenet", **settings: Any
) -> VGG:
  """Build VGG-16 with batch norm: 138,361,768 parameters at 1000 classes.

  Args:
    num_classes: outputs of the head.
    stem: 'imagenet' or 'small', see `VGG`.
    **settings: `in_channels`, `dtype`, `param_dtype`, `conv_general_dilated`
      and `rngs`, see `VGG`.
  """
  return VGG(num_classes, stem=stem, **settings)
