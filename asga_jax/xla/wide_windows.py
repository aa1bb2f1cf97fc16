"""A convolution whose window is wider than what it slides over, as a product.

XLA's CPU backend takes 10 to 60 times as long for one as for a product of the
same size: so do the last layers of networks for 224 pixels at 32 or 64.
"""

import itertools

import jax
from jax import lax
from jax import numpy as jnp

_Pads = tuple[tuple[int, int], ...]
_Ints = tuple[int, ...]


def is_wide(
  lhs: jax.Array, rhs: jax.Array, strides: _Ints, pads: _Pads, dilation: _Ints
) -> bool:
  """Tell whether a window spans more than the input or the output on all axes.

  An output so narrow makes the gradient of the input such a convolution.

  Args:
    lhs: input, shape [N, *spatial, C].
    rhs: kernel, shape [*window, C, O].
    strides: one a spatial axis.
    pads: (low, high) a spatial axis.
    dilation: of the kernel, one a spatial axis.
  """
  outputs = _outputs(lhs, rhs, strides, pads, dilation)
  return all(
    0 < min(size, output) < step * (window - 1) + 1
    for size, window, output, step in zip(
      lhs.shape[1:-1], rhs.shape[:-2], outputs, dilation, strict=True
    )
  )


def convolve(
  lhs: jax.Array, rhs: jax.Array, strides: _Ints, pads: _Pads, dilation: _Ints
) -> jax.Array:
  """Multiply all that each position sees by the kernel, at once.

  Sums in float32 or better.

  Args:
    lhs: input, shape [N, *spatial, C].
    rhs: kernel, shape [*window, C, O].
    strides: one a spatial axis.
    pads: (low, high) a spatial axis, not negative.
    dilation: of the kernel, one a spatial axis.

  Returns:
    Shape [N, *out_spatial, O], dtype of lhs.
  """
  outputs = _outputs(lhs, rhs, strides, pads, dilation)
  padded = jnp.pad(lhs, ((0, 0), *pads, (0, 0)))
  seen = []
  for place in itertools.product(*map(range, rhs.shape[:-2])):
    starts = [index * step for index, step in zip(place, dilation, strict=True)]
    ends = [
      start + stride * (output - 1) + 1
      for start, stride, output in zip(starts, strides, outputs, strict=True)
    ]
    seen.append(
      lax.slice(
        padded,
        (0, *starts, 0),
        (lhs.shape[0], *ends, lhs.shape[-1]),
        (1, *strides, 1),
      )
    )
  product = lax.dot_general(
    jnp.concatenate(seen, -1),
    rhs.reshape(-1, rhs.shape[-1]),
    (((lhs.ndim - 1,), (0,)), ((), ())),
    preferred_element_type=jnp.promote_types(lhs.dtype, jnp.float32),
  )
  return product.astype(lhs.dtype)


def _outputs(lhs, rhs, strides, pads, dilation) -> list[int]:
  return [
    (low + size + high - step * (window - 1) - 1) // stride + 1
    for size, window, stride, (low, high), step in zip(
      lhs.shape[1:-1], rhs.shape[:-2], strides, pads, dilation, strict=True
    )
  ]
