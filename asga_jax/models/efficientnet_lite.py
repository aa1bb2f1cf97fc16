"""EfficientNet-Lite: EfficientNet without squeeze-excitation, with ReLU6.

Network: Tan and Le 2019 (https://arxiv.org/abs/1905.11946); the Lite form:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
Its blocks are those of MobileNetV2, and so are the module paths.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from asga_jax.models import layers, mobilenet_v2

# Table 1 of the paper: expansion, channels, blocks, the first one's stride,
# kernel.
_STAGES = (
  (1, 16, 1, 1, 3),
  (6, 24, 2, 2, 3),
  (6, 40, 2, 2, 5),
  (6, 80, 3, 2, 3),
  (6, 112, 3, 1, 5),
  (6, 192, 4, 2, 5),
  (6, 320, 1, 1, 3),
)
# These do not grow in the Lite form.
_STEM, _FEATURES = 32, 1280


class EfficientNetLite(nnx.Module):
  """A stem, inverted residuals, a 1x1 convolution, a linear head."""

  def __init__(
    self,
    num_classes: int,
    *,
    stem: str,
    width: float = 1.0,
    depth: float = 1.0,
    padding: str = "same",
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
      stem: 'imagenet', or 'small', see `MobileNetV2`.
      width: multiplier of the stages' channels, rounded to multiples of 8.
      depth: multiplier of the blocks of all stages but the first and the last,
        rounded up.
      padding: 'same' as in the published weights of TensorFlow, or 'symmetric'.
      in_channels: channels of the images.
      dtype: dtype of the computation; None takes it from inputs and params.
      param_dtype: dtype of the parameters.
      conv_general_dilated: what `nnx.Conv` convolves with.
      rngs: stream of random keys.

    Raises:
      ValueError: if `stem` or `padding` is unknown, or `width` or `depth` not
        positive.
    """
    for name, factor in (("width", width), ("depth", depth)):
      if not factor > 0:
        raise ValueError(f"{name} is {factor}; expected a positive number")
    types: dict[str, Any] = {
      "dtype": dtype,
      "param_dtype": param_dtype,
      "rngs": rngs,
    }
    conv: Callable[..., nnx.Conv] = functools.partial(
      layers.conv,
      padding=padding,
      conv_general_dilated=conv_general_dilated,
      **types,
    )
    norm: Callable[..., nnx.BatchNorm] = functools.partial(
      layers.batch_norm, epsilon=1e-3, **types
    )
    small = layers.check_stem(stem) == "small"
    self.stem = conv(in_channels, _STEM, 3, stride=1 if small else 2)
    self.stem_norm = norm(_STEM)
    blocks = []
    inputs = _STEM
    for i, (expansion, channels, count, stride, kernel) in enumerate(_STAGES):
      grows = 0 < i < len(_STAGES) - 1
      outputs = mobilenet_v2.round_channels(channels * width)
      for j in range(math.ceil(count * depth) if grows else count):
        reduces = j == 0 and not (small and i == 1)
        blocks.append(
          mobilenet_v2.InvertedResidual(
            inputs,
            outputs,
            expansion=expansion,
            stride=stride if reduces else 1,
            kernel=kernel,
            conv=conv,
            norm=norm,
          )
        )
        inputs = outputs
    self.blocks = nnx.List(blocks)
    self.last = conv(inputs, _FEATURES, 1)
    self.last_norm = norm(_FEATURES)
    self.head = nnx.Linear(_FEATURES, num_classes, **types)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Map images [N, H, W, in_channels] to logits [N, num_classes]."""
    x = nnx.relu6(self.stem_norm(self.stem(images)))
    for block in self.blocks:
      x = block(x)
    x = nnx.relu6(self.last_norm(self.last(x)))
    return self.head(x.mean(axis=(1, 2)))


# Number -> width, depth; their images are of 224, 240, 260, 280 and 300 pixels.
_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))


def efficientnet_lite(
  number: int,
  num_classes: int = 1000,
  *,
  stem: str = "imagenet",
  **settings: Any,
) -> EfficientNetLite:
  """Build EfficientNet-Lite0 to 4; 0 has 4.65 M parameters at 1000 classes.

  Args:
    number: 0 to 4.
    num_classes: outputs of the head.
    stem: 'imagenet' or 'small', see `EfficientNetLite`.
    **settings: `padding`, `in_channels`, `dtype`, `param_dtype`,
      `conv_general_dilated` and `rngs`, see `EfficientNetLite`.
  """
  width, depth = _SCALES[number]
  return EfficientNetLite(
    num_classes, stem=stem, width=width, depth=depth, **settings
  )
