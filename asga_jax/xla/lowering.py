"""Convolutions in the form that XLA runs fast on the platform at hand.

On a CPU, XLA has a fast kernel for dense convolutions whose operands and result
are channels-last (see `outline.channels_last`). Here gradients are written in
that form to begin with, so that they are fast in a loop or out of line too.
Depthwise convolutions have no kernel at all: see `depthwise`. Those whose
window is wider than their input have a slow one: see `wide_windows`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from flax import nnx
from jax import lax
from jax import numpy as jnp

from asga_jax.xla import depthwise, outline, target, wide_windows

# XLA calls these experimental: it may drop them.
CPU_OPTIONS = {
  # XLA prefers 256 bits where a CPU has 512; the mixture gains a third.
  "xla_cpu_prefer_vector_width": 512,
  # YNNPACK's convolutions are no faster here, take a quarter more memory, and
  # loading their programs from a cache takes time quadratic in their size.
  "xla_cpu_experimental_ynn_fusion_type": "",
}

_Pads = tuple[tuple[int, int], ...]
_Ints = tuple[int, ...]


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  **kwargs: Any,
) -> jax.Array:
  """Convolve as `jax.lax.conv_general_dilated` does, but fast on a CPU.

  On a CPU a channels-last convolution that is dense or depthwise has its own
  rule for gradients; any other convolution, and any other platform, goes to
  `lax` unchanged. The rule serves reverse mode and forward over reverse, but
  not a plain `jax.jvp`.

  Args:
    lhs: input, shape [N, *spatial, C].
    rhs: kernel, shape [*window, C, O], or [*window, 1, C] if depthwise.
    window_strides: one stride a spatial axis.
    padding: 'SAME', 'SAME_LOWER', 'VALID' or (low, high) a spatial axis.
    lhs_dilation: dilation of the input, one a spatial axis.
    rhs_dilation: dilation of the kernel, one a spatial axis.
    dimension_numbers: as in `lax`.
    feature_group_count: number of channel groups.
    **kwargs: what else `lax.conv_general_dilated` takes (`precision`,
      `out_sharding`, ...); `precision` has no meaning on a CPU.

  Returns:
    The convolution, in the layout that `dimension_numbers` names.
  """
  others = {k: v for k, v in kwargs.items() if k != "precision"}
  numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  depthwise_groups = feature_group_count == lhs.shape[-1] == rhs.shape[-1] > 1
  if (
    target.platform() != "cpu"
    or not (feature_group_count == 1 or depthwise_groups)
    or any(v not in (None, 1) for v in others.values())
    or any(d != 1 for d in lhs_dilation or ())
    or numbers != outline.channels_last(lhs.ndim)
    or lhs.dtype != rhs.dtype
    or not jnp.issubdtype(lhs.dtype, jnp.floating)
  ):
    return lax.conv_general_dilated(
      lhs,
      rhs,
      window_strides,
      padding,
      lhs_dilation=lhs_dilation,
      rhs_dilation=rhs_dilation,
      dimension_numbers=dimension_numbers,
      feature_group_count=feature_group_count,
      **kwargs,
    )
  window = rhs.shape[:-2]
  strides = tuple(window_strides)
  dilation = tuple(rhs_dilation or (1,) * len(window))
  if isinstance(padding, str):
    spans = [d * (w - 1) + 1 for w, d in zip(window, dilation, strict=True)]
    padding = lax.padtype_to_pads(lhs.shape[1:-1], spans, strides, padding)
  pads = tuple((int(low), int(high)) for low, high in padding)
  convolve = depthwise.convolve if depthwise_groups else _dense
  if (
    not depthwise_groups
    and min((0, *sum(pads, ()))) == 0
    and wide_windows.is_wide(lhs, rhs, strides, pads, dilation)
  ):
    convolve = wide_windows.convolve
  return convolve(lhs, rhs, strides, pads, dilation)


def compiler_options() -> dict[str, Any]:
  """Give the options that a step is compiled with for this platform.

  Those that the installed XLA does not know are left out, and logged once.
  """
  if target.platform() != "cpu":
    return {}
  return {
    name: value for name, value in CPU_OPTIONS.items() if _knows(name, value)
  }


@functools.cache
def _knows(name: str, value: Any) -> bool:
  """Say whether XLA compiles with an option; it takes milliseconds."""
  program = jax.jit(lambda x: x).lower(0.0)
  try:
    program.compile(compiler_options={name: value})
  except jax.errors.JaxRuntimeError as error:
    logging.info("steps are compiled without %s=%r: %s", name, value, error)
    return False
  return True


def _convolve(
  lhs: jax.Array,
  rhs: jax.Array,
  strides: _Ints,
  pads: _Pads,
  dilation: _Ints,
  lhs_dilation: _Ints,
) -> jax.Array:
  return lax.conv_general_dilated(
    lhs,
    rhs,
    strides,
    pads,
    lhs_dilation=lhs_dilation,
    rhs_dilation=dilation,
    dimension_numbers=outline.channels_last(lhs.ndim),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _dense(lhs, rhs, strides, pads, dilation):
  return _convolve(lhs, rhs, strides, pads, dilation, (1,) * len(strides))


def _dense_forward(lhs, rhs, strides, pads, dilation):
  return _dense(lhs, rhs, strides, pads, dilation), (lhs, rhs)


def _dense_backward(strides, pads, dilation, residuals, grad):
  lhs, rhs = residuals
  spatial = range(lhs.ndim - 2)
  sizes = [
    (
      lhs.shape[1 + i],
      dilation[i] * (rhs.shape[i] - 1) + 1,  # the window, with its holes
      strides[i] * (grad.shape[1 + i] - 1) + 1,  # the output, with its holes
      pads[i][0],
    )
    for i in spatial
  ]
  flipped = jnp.swapaxes(jnp.flip(rhs, tuple(spatial)), -1, -2)
  lhs_grad = _convolve(
    grad,
    flipped,
    (1,) * len(sizes),
    tuple(
      (window - 1 - low, size + low - output)
      for size, window, output, low in sizes
    ),
    dilation,
    strides,
  )
  ones = (*rhs.shape[:-2], *strides)
  if all(n == 1 for n in ones) and not any(sum(pads, ())):
    # XLA would copy both tensors to transpose them for what stands below.
    axes = tuple(range(lhs.ndim - 1))
    product = lax.dot_general(
      lhs,
      grad,
      ((axes, axes), ((), ())),
      preferred_element_type=jnp.promote_types(lhs.dtype, jnp.float32),
    )
    return lhs_grad, product.reshape(rhs.shape).astype(rhs.dtype)
  # Channels take the place of the batch, the batch that of the channels.
  rhs_grad = _convolve(
    jnp.swapaxes(lhs, 0, -1),
    jnp.moveaxis(grad, 0, -2),
    dilation,
    tuple(
      (low, window + output - 1 - size - low)
      for size, window, output, low in sizes
    ),
    strides,
    (1,) * len(sizes),
  )
  return lhs_grad, jnp.moveaxis(rhs_grad, 0, -2)


_dense.defvjp(_dense_forward, _dense_backward)


def with_fast_convolutions(model: nnx.Module) -> nnx.Module:
  """Let the convolutions of a network take the form above.

  Args:
    model: float or quantized; it is not changed. A module that does not call
      `lax.conv_general_dilated` through an attribute keeps what it calls.

  Returns:
    A copy.
  """
  model = nnx.clone(model)
  _exchange(model, lax.conv_general_dilated, conv_general_dilated)
  return model


def use_lax_convolutions(model: nnx.Module) -> None:
  """Undo `with_fast_convolutions`, in place: for programs that leave this CPU.

  Args:
    model: float or quantized; what does not call the form above stays.
  """
  _exchange(model, conv_general_dilated, lax.conv_general_dilated)


def _exchange(model: nnx.Module, old: Any, new: Any) -> None:
  """Put a function where the modules of a network hold another one."""
  for _, module in nnx.iter_modules(model):
    held = [name for name, value in vars(module).items() if value is old]
    for name in held:
      setattr(module, name, new)
