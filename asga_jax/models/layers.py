"""The two layers that every network here is made of."""

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

STEMS = ("imagenet", "small")
# PyTorch's way of padding, and TensorFlow's.
PADDINGS = ("symmetric", "same")


def check_stem(stem: str) -> str:
  """Return `stem`; raises ValueError if it is not the name of one."""
  if stem not in STEMS:
    raise ValueError(f"stem is {stem!r}; expected one of {', '.join(STEMS)}")
  return stem


def conv(
  inputs: int,
  outputs: int,
  kernel: int,
  *,
  stride: int = 1,
  groups: int = 1,
  padding: str = "symmetric",
  dtype: Any = None,
  param_dtype: Any = jnp.float32,
  conv_general_dilated: Callable[..., jax.Array] = jax.lax.conv_general_dilated,
  rngs: nnx.Rngs,
) -> nnx.Conv:
  """Build a square convolution without bias, for a batch norm to follow.

  Padding is 'symmetric', (kernel - 1) / 2 on both sides, or 'same' as in
  networks from TensorFlow, which at stride 2 pads more at the end: weights that
  were trained with one lose accuracy with the other. Kernels are He-normal in
  fan-out (He et al. 2015, equation 14), a group's own outputs counted.

  Raises:
    ValueError: `padding` is neither.
  """
  if padding not in PADDINGS:
    raise ValueError(
      f"padding is {padding!r}; expected one of {', '.join(PADDINGS)}"
    )
  deviation = math.sqrt(2.0 * groups / (kernel * kernel * outputs))
  return nnx.Conv(
    inputs,
    outputs,
    (kernel, kernel),
    strides=stride,
    padding="SAME" if padding == "same" else (kernel - 1) // 2,
    feature_group_count=groups,
    use_bias=False,
    dtype=dtype,
    param_dtype=param_dtype,
    kernel_init=nnx.initializers.normal(deviation),
    conv_general_dilated=conv_general_dilated,
    rngs=rngs,
  )


def batch_norm(
  features: int,
  *,
  epsilon: float = 1e-5,
  dtype: Any = None,
  param_dtype: Any = jnp.float32,
  rngs: nnx.Rngs,
) -> nnx.BatchNorm:
  """Build a batch norm whose statistics move by a tenth a step.

  Statistics have `param_dtype`, or float32 where that is narrower: `nnx` makes
  them float32 always, and they would change type at the first float64 step.
  """
  norm = nnx.BatchNorm(
    features,
    momentum=0.9,
    epsilon=epsilon,
    dtype=dtype,
    param_dtype=param_dtype,
    rngs=rngs,
  )
  statistics = jnp.promote_types(param_dtype, jnp.float32)
  norm.mean = nnx.BatchStat(jnp.zeros((features,), statistics))
  norm.var = nnx.BatchStat(jnp.ones((features,), statistics))
  return norm
