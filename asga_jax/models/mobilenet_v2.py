"""MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381).

Module paths, the same for every stem, width and class count: `stem`,
`stem_norm`, `blocks/B/expand`, `expand_norm` (not in block 0, whose expansion
is 1), `depthwise`, `depthwise_norm`, `project`, `project_norm`; then `last`,
`last_norm`, `head`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from asga_jax.models import layers

# Table 2 of the paper: expansion t, channels c, blocks n, stride of the first.
_STAGES = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


class InvertedResidual(nnx.Module):
  """Expand by 1x1, convolve depthwise, project by 1x1 linearly."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    expansion: int,
    stride: int,
    kernel: int = 3,
    conv: Callable[..., nnx.Conv],
    norm: Callable[..., nnx.BatchNorm],
  ):
    hidden = inputs * expansion
    self.residual = stride == 1 and inputs == outputs
    expands = expansion != 1
    self.expand = conv(inputs, hidden, 1) if expands else None
    self.expand_norm = norm(hidden) if expands else None
    self.depthwise = conv(hidden, hidden, kernel, stride=stride, groups=hidden)
    self.depthwise_norm = norm(hidden)
    self.project = conv(hidden, outputs, 1)
    self.project_norm = norm(outputs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Map [N, H, W, inputs] to [N, H / stride, W / stride, outputs]."""
    y = x
    if self.expand is not None and self.expand_norm is not None:
      y = nnx.relu6(self.expand_norm(self.expand(y)))
    y = nnx.relu6(self.depthwise_norm(self.depthwise(y)))
    y = self.project_norm(self.project(y))
    return x + y if self.residual else y


class MobileNetV2(nnx.Module):
  """A stem, 17 inverted residuals, a 1x1 convolution, a linear head."""

  def __init__(
    self,
    num_classes: int,
    *,
    stem: str,
    width: float = 1.0,
    in_channels: int = 3,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    conv_general_dilated: Callable[
      ..., jax.Array
    ] = jax.lax.conv_general_dilated,
    rngs: nnx.Rngs,
  ):
    """Build the network.

    Args:
      num_classes: outputs of the head.
      stem: 'imagenet', or 'small', which has stride 1 in the stem and in the
        first block of 24 channels and so keeps 32x32 images 32x32 until then.
      width: multiplier of every channel count, rounded to multiples of 8; the
        1,280 channels before the head never shrink.
      in_channels: channels of the images.
      dtype: dtype of the computation; None takes it from inputs and params.
      param_dtype: dtype of the parameters.
      conv_general_dilated: what `nnx.Conv` convolves with.
      rngs: stream of random keys.

    Raises:
      ValueError: if `stem` is neither or `width` is not positive.
    """
    if not width > 0:
      raise ValueError(f"width is {width}; expected a positive number")
    types: dict[str, Any] = {
      "dtype": dtype,
      "param_dtype": param_dtype,
      "rngs": rngs,
    }
    conv: Callable[..., nnx.Conv] = functools.partial(
      layers.conv, conv_general_dilated=conv_general_dilated, **types
    )
    norm: Callable[..., nnx.BatchNorm] = functools.partial(
      layers.batch_norm, **types
    )
    small = layers.check_stem(stem) == "small"
    inputs = round_channels(32 * width)
    self.stem = conv(in_channels, inputs, 3, stride=1 if small else 2)
    self.stem_norm = norm(inputs)
    blocks = []
    for i, (expansion, channels, count, stride) in enumerate(_STAGES):
      for j in range(count):
        reduces = j == 0 and not (small and i == 1)
        outputs = round_channels(channels * width)
        blocks.append(
          InvertedResidual(
            inputs,
            outputs,
            expansion=expansion,
            stride=stride if reduces else 1,
            conv=conv,
            norm=norm,
          )
        )
        inputs = outputs
    self.blocks = nnx.List(blocks)
    features = round_channels(1280 * max(1.0, width))
    self.last = conv(inputs, features, 1)
    self.last_norm = norm(features)
    self.head = nnx.Linear(features, num_classes, **types)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Map images [N, H, W, in_channels] to logits [N, num_classes]."""
    x = nnx.relu6(self.stem_norm(self.stem(images)))
    for block in self.blocks:
      x = block(x)
    x = nnx.relu6(self.last_norm(self.last(x)))
    return self.head(x.mean(axis=(1, 2)))


def mobilenet_v2(
  num_classes: int = 1000, *, stem: str = "imagenet", **settings: Any
) -> MobileNetV2:
  """Build MobileNetV2: 3,504,872 parameters at 1000 classes and width 1.

  Args:
    num_classes: outputs of the head.
    stem: 'imagenet' or 'small', see `MobileNetV2`.
    **settings: `width`, `in_channels`, `dtype`, `param_dtype`,
      `conv_general_dilated` and `rngs`, see `MobileNetV2`.
  """
  return MobileNetV2(num_classes, stem=stem, **settings)


def round_channels(wanted: float) -> int:
  """Round to the nearest multiple of 8 that loses at most a tenth."""
  rounded = max(8, int(wanted + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * wanted else rounded
