"""A depthwise convolution that XLA runs fast on CPU.

XLA's CPU backend has no kernel for grouped convolutions and falls to a scalar
loop, 5 to 60 times slower than the shifted multiply-adds below.
"""

import itertools

import jax
from jax import lax
from jax import numpy as jnp

from asga_jax.xla import promotion

_Pads = tuple[tuple[int, int], ...]
_Ints = tuple[int, ...]


def convolve(
  lhs: jax.Array, rhs: jax.Array, strides: _Ints, pads: _Pads, dilation: _Ints
) -> jax.Array:
  """Convolve each channel with a window of its own, as shifted products.

  Sums in float32 or better. It can be differentiated in reverse mode and
  forward over reverse, but not by a plain `jax.jvp`.

  Args:
    lhs: input, shape [N, *spatial, C].
    rhs: kernel, shape [*window, 1, C].
    strides: one a spatial axis.
    pads: (low, high) a spatial axis.
    dilation: of the kernel, one a spatial axis.

  Returns:
    Shape [N, *out_spatial, C], dtype of lhs.
  """
  accumulated = jnp.promote_types(lhs.dtype, jnp.float32)
  # Stored whole: the loop of a kernel of one row would be no loop.
  rhs = _stored(rhs.astype(accumulated))
  rhs, pads = _trimmed(lhs, rhs, strides, pads, dilation)
  out = _depthwise(
    lhs.astype(accumulated),
    rhs,
    strides,
    pads,
    dilation,
  )
  return out.astype(lhs.dtype)


def _trimmed(
  lhs: jax.Array, rhs: jax.Array, strides: _Ints, pads: _Pads, dilation: _Ints
) -> tuple[jax.Array, _Pads]:
  """Cut off the outer positions of a kernel that meet nothing but padding."""
  index, trimmed = [], []
  for size, window, stride, (low, high), step in zip(
    lhs.shape[1:-1], rhs.shape, strides, pads, dilation, strict=False
  ):
    outputs = (low + size + high - step * (window - 1) - 1) // stride + 1
    met = [
      position
      for position in range(window)
      if any(
        0 <= stride * output + step * position - low < size
        for output in range(outputs)
      )
    ] or [0]
    index.append(slice(met[0], met[-1] + 1))
    after = window - 1 - met[-1]
    trimmed.append((low - step * met[0], high - step * after))
  return rhs[tuple(index)], tuple(trimmed)


def _stored(rhs: jax.Array) -> jax.Array:
  """Return a kernel as it is, from memory.

  XLA fuses what makes a small kernel, such as its quantization, into the sum
  over positions, and computes it again for every element of the output. A loop
  is a border to fusion; `lax.optimization_barrier` is none on a CPU.
  """
  one = jnp.ones((), rhs.dtype)
  return lax.scan(lambda one, row: (one, row * one), one, rhs)[1]


def _taps(
  lhs: jax.Array, window: _Ints, strides: _Ints, pads: _Pads, dilation: _Ints
) -> list[jax.Array]:
  """Return, for each kernel position, the input that it multiplies.

  Each has the output's shape [N, *out_spatial, C]; the order is that of the
  kernel's positions, the last axis fastest.
  """
  padded = lax.pad(
    lhs,
    jnp.zeros((), lhs.dtype),
    ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)),
  )
  # No border to fusion, but else XLA makes of the middle slice the tensor
  # itself, and computes what made it, such as a mixture, once more for it.
  padded = lax.optimization_barrier(padded)
  batch, *spatial, channels = padded.shape
  sizes = [
    (size - d * (w - 1) - 1) // s
    for size, w, s, d in zip(spatial, window, strides, dilation, strict=True)
  ]
  taps = []
  for position in itertools.product(*(range(w) for w in window)):
    starts = [p * d for p, d in zip(position, dilation, strict=True)]
    limits = [
      start + size * s + 1
      for start, size, s in zip(starts, sizes, strides, strict=True)
    ]
    taps.append(
      lax.slice(
        padded, (0, *starts, 0), (batch, *limits, channels), (1, *strides, 1)
      )
    )
  return taps


def _shifted(
  lhs: jax.Array, rhs: jax.Array, strides: _Ints, pads: _Pads, dilation: _Ints
) -> jax.Array:
  """Sum the products of shifted inputs and kernel entries."""
  taps = _taps(lhs, rhs.shape[:-2], strides, pads, dilation)
  weights = rhs.reshape(len(taps), rhs.shape[-1])
  out = taps[0] * weights[0]
  for tap, weight in zip(taps[1:], weights[1:], strict=True):
    out = out + tap * weight
  return out


def _depthwise_forward(lhs, rhs, strides, pads, dilation):
  return _shifted(lhs, rhs, strides, pads, dilation), (lhs, rhs)


@promotion.usual()
def _depthwise_backward(strides, pads, dilation, residuals, grad):
  lhs, rhs = residuals
  transpose = jax.linear_transpose(
    lambda x: _shifted(x, rhs, strides, pads, dilation), lhs
  )
  (lhs_grad,) = transpose(grad)
  taps = _taps(lhs, rhs.shape[:-2], strides, pads, dilation)
  # One reduction of all positions reads the input once; one a position, which
  # autodiff gives, takes 2 to 8 times as long. The batch axis is left for a
  # second sum: that keeps a sharded batch sharded, and rounds less.
  sums = lax.reduce(
    tuple(tap * grad for tap in taps),
    (jnp.zeros((), grad.dtype),) * len(taps),
    lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
    tuple(range(1, lhs.ndim - 1)),
  )
  rhs_grad = jnp.stack(sums).sum(axis=1).reshape(rhs.shape)
  return lhs_grad, rhs_grad


_depthwise = jax.custom_vjp(_shifted, nondiff_argnums=(2, 3, 4))
_depthwise.defvjp(_depthwise_forward, _depthwise_backward)
