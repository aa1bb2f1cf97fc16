"""Residual networks (He et al. 2016, https://arxiv.org/abs/1512.03385).

Module paths, the same for every stem and class count: `stem`, `stem_norm`,
`stages/S/B/conv1`, `norm1`, `conv2`, `norm2`, in ResNet-50 `conv3`, `norm3`,
and in the first block of a stage that changes shape `shortcut`,
`shortcut_norm`; last `head`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from asga_jax.models import layers

SHORTCUTS = ("projection", "zeros")


def _shortcut(
  inputs: int,
  outputs: int,
  stride: int,
  conv: Callable[..., nnx.Conv],
  norm: Callable[..., nnx.BatchNorm],
) -> tuple[nnx.Conv | None, nnx.BatchNorm | None]:
  """Make the layers of a shortcut, none where the shape stays."""
  if stride == 1 and inputs == outputs:
    return None, None
  return conv(inputs, outputs, 1, stride=stride), norm(outputs)


def pad_shortcut(x: jax.Array, stride: int, outputs: int) -> jax.Array:
  """Take every stride-th pixel, and pad channels with zeros on both sides."""
  missing = outputs - x.shape[-1]
  margin = (missing // 2, missing - missing // 2)
  return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), margin))


class Block(nnx.Module):
  """Two 3x3 convolutions beside a shortcut.

  Where the shape changes the shortcut is a 1x1 convolution ('projection',
  option B of the paper, section 4.1), or every second pixel with channels of
  zeros on both sides ('zeros', option A, as in the paper's networks for
  CIFAR-10).
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    stride: int,
    conv: Callable[..., nnx.Conv],
    norm: Callable[..., nnx.BatchNorm],
    shortcuts: str = "projection",
  ):
    if shortcuts not in SHORTCUTS:
      raise ValueError(
        f"shortcuts is {shortcuts!r}; expected one of {', '.join(SHORTCUTS)}"
      )
    self.conv1 = conv(inputs, outputs, 3, stride=stride)
    self.norm1 = norm(outputs)
    self.conv2 = conv(outputs, outputs, 3)
    self.norm2 = norm(outputs)
    self.stride = stride
    self.pads = shortcuts == "zeros" and (stride, inputs) != (1, outputs)
    self.shortcut, self.shortcut_norm = (
      (None, None)
      if self.pads
      else _shortcut(inputs, outputs, stride, conv, norm)
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """Map [N, H, W, inputs] to [N, H / stride, W / stride, outputs]."""
    y = nnx.relu(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    if self.pads:
      x = pad_shortcut(x, self.stride, y.shape[-1])
    elif self.shortcut is not None and self.shortcut_norm is not None:
      x = self.shortcut_norm(self.shortcut(x))
    return nnx.relu(x + y)


class Bottleneck(nnx.Module):
  """Convolutions of 1x1, 3x3 and 1x1 beside a shortcut, 4 times as wide."""

  expansion = 4

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    stride: int,
    conv: Callable[..., nnx.Conv],
    norm: Callable[..., nnx.BatchNorm],
    stride_in: str = "conv2",
  ):
    first, second = (stride, 1) if stride_in == "conv1" else (1, stride)
    width = outputs // self.expansion
    self.conv1 = conv(inputs, width, 1, stride=first)
    self.norm1 = norm(width)
    self.conv2 = conv(width, width, 3, stride=second)
    self.norm2 = norm(width)
    self.conv3 = conv(width, outputs, 1)
    self.norm3 = norm(outputs)
    self.shortcut, self.shortcut_norm = _shortcut(
      inputs, outputs, stride, conv, norm
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """Map [N, H, W, inputs] to [N, H / stride, W / stride, outputs]."""
    y = nnx.relu(self.norm1(self.conv1(x)))
    y = nnx.relu(self.norm2(self.conv2(y)))
    y = self.norm3(self.conv3(y))
    if self.shortcut is not None and self.shortcut_norm is not None:
      x = self.shortcut_norm(self.shortcut(x))
    return nnx.relu(x + y)


class ResNet(nnx.Module):
  """A stem, stages of residual blocks, a mean over space, a linear head."""

  def __init__(
    self,
    num_classes: int,
    *,
    blocks: Sequence[int],
    widths: Sequence[int],
    stem: str,
    block: Callable[..., Block | Bottleneck] = Block,
    stem_width: int | None = None,
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
      blocks: number of blocks of each stage.
      widths: channels of each stage; all but the first start at stride 2.
      block: makes a block of (inputs, outputs, stride, conv, norm).
      stem_width: channels of the stem; None for those of the first stage.
      stem: 'imagenet' (7x7 at stride 2, then 3x3 max pooling at stride 2) or
        'small' (3x3 at stride 1).
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
    norm: Callable[..., nnx.BatchNorm] = functools.partial(
      layers.batch_norm, **types
    )
    inputs = stem_width or widths[0]
    self.pooled_stem = layers.check_stem(stem) == "imagenet"
    if self.pooled_stem:
      self.stem = conv(in_channels, inputs, 7, stride=2)
    else:
      self.stem = conv(in_channels, inputs, 3)
    self.stem_norm = norm(inputs)
    stages = []
    for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
      stage = []
      for j in range(count):
        stride = 2 if i > 0 and j == 0 else 1
        stage.append(block(inputs, width, stride=stride, conv=conv, norm=norm))
        inputs = width
      stages.append(nnx.List(stage))
    self.stages = nnx.List(stages)
    self.head = nnx.Linear(inputs, num_classes, **types)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Map images [N, H, W, in_channels] to logits [N, num_classes]."""
    x = nnx.relu(self.stem_norm(self.stem(images)))
    if self.pooled_stem:
      x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for stage in self.stages:
      for block in stage:
        x = block(x)
    return self.head(x.mean(axis=(1, 2)))


def resnet18(
  num_classes: int = 1000, *, stem: str = "imagenet", **settings: Any
) -> ResNet:
  """Build ResNet-18: 11,689,512 parameters at 1000 classes.

  Args:
    num_classes: outputs of the head.
    stem: 'imagenet' or 'small', see `ResNet`.
    **settings: `in_channels`, `dtype`, `param_dtype`, `conv_general_dilated`
      and `rngs`, see `ResNet`.
  """
  return ResNet(
    num_classes,
    blocks=(2, 2, 2, 2),
    widths=(64, 128, 256, 512),
    stem=stem,
    **settings,
  )


def resnet50(
  num_classes: int = 1000,
  *,
  stem: str = "imagenet",
  stride_in: str = "conv2",
  **settings: Any,
) -> ResNet:
  """Build ResNet-50: 25,557,032 parameters at 1000 classes.

  Args:
    num_classes: outputs of the head.
    stem: 'imagenet' or 'small', see `ResNet`.
    stride_in: which convolution of a stage's first block has the stride:
      'conv2', the 3x3 one, as in what is called v1.5, or 'conv1' as in the
      paper.
    **settings: see `resnet18`.

  Raises:
    ValueError: another `stem` or `stride_in`.
  """
  if stride_in not in ("conv1", "conv2"):
    raise ValueError(f"stride_in={stride_in!r}; expected 'conv1' or 'conv2'")
  return ResNet(
    num_classes,
    blocks=(3, 4, 6, 3),
    widths=(256, 512, 1024, 2048),
    stem=stem,
    block=functools.partial(Bottleneck, stride_in=stride_in),
    stem_width=64,
    **settings,
  )


def resnet20(
  num_classes: int = 10,
  *,
  stem: str = "small",
  shortcuts: str = "projection",
  **settings: Any,
) -> ResNet:
  """Build ResNet-20 for 32x32 images, 0.27 M parameters.

  Args:
    num_classes: outputs of the head.
    stem: 'imagenet' or 'small', see `ResNet`.
    shortcuts: 'projection', or 'zeros' as in the paper, see `Block`.
    **settings: see `resnet18`.
  """
  return _of_three_stages(3, num_classes, stem, shortcuts, settings)


def resnet56(
  num_classes: int = 10,
  *,
  stem: str = "small",
  shortcuts: str = "projection",
  **settings: Any,
) -> ResNet:
  """Build ResNet-56 for 32x32 images, 0.85 M parameters; see `resnet20`."""
  return _of_three_stages(9, num_classes, stem, shortcuts, settings)


def resnet8(
  num_classes: int = 10,
  *,
  stem: str = "small",
  shortcuts: str = "projection",
  **settings: Any,
) -> ResNet:
  """Build ResNet-8 for 32x32 images, 0.08 M parameters; see `resnet20`."""
  return _of_three_stages(1, num_classes, stem, shortcuts, settings)


def _of_three_stages(
  count: int,
  num_classes: int,
  stem: str,
  shortcuts: str,
  settings: Mapping[str, Any],
) -> ResNet:
  return ResNet(
    num_classes,
    blocks=(count,) * 3,
    widths=(16, 32, 64),
    stem=stem,
    block=functools.partial(Block, shortcuts=shortcuts),
    **settings,
  )
