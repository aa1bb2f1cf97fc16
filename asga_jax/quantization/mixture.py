"""The mixture of a tensor's quantized forms: the formula, as it is written.

Layers compute it by `xla.mixture`, which gives the same numbers faster and in
less memory; what stands here is what that is tested against.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from asga_jax.quantization import quantizers


class Grids(NamedTuple):
  """The uniform grids of the candidates."""

  lower: jax.Array  # shape=(candidates,), dtype=float32
  upper: jax.Array  # shape=(candidates,), dtype=float32
  is_float: jax.Array  # shape=(candidates,), dtype=bool: the tensor as it is


def make_grids(bits: jax.Array, signed: jax.Array, narrow: bool) -> Grids:
  """Make the grids of candidate bit-widths.

  Args:
    bits: int32, shape (candidates,); 32 stands for float.
    signed: bool, shape ().
    narrow: whether a signed grid leaves out its lowest code.

  Returns:
    The grids.
  """
  lower, upper = quantizers.levels(bits, signed, narrow)
  return Grids(lower, upper, bits == quantizers.FLOAT_BITS)


def move_zeros(
  grids: Grids, steps: jax.Array, shift: jax.Array | None
) -> Grids:
  """Move codes down by a number in units of the tensor.

  Args:
    grids: of the candidates; codes need not be whole numbers here.
    steps: shape (candidates,).
    shift: shape (), or None for none.

  Returns:
    The grids of as many codes, whole numbers of which one is zero.
  """
  if shift is None:
    return grids
  step = jnp.maximum(steps, quantizers.SMALLEST_STEP)
  highest = jnp.round(grids.upper - grids.lower)
  zeros = jnp.clip(jnp.round(shift / step - grids.lower), 0, highest)
  zeros = jax.lax.stop_gradient(zeros)
  return Grids(-zeros, highest - zeros, grids.is_float)


def mixture(
  x: jax.Array,
  steps: jax.Array,
  probabilities: jax.Array,
  grids: Grids,
  shift: jax.Array | None = None,
  *,
  offset: float = 0.0,
  step_gradient: str = "full",
) -> jax.Array:
  """Mix the quantized forms of a tensor by their probabilities.

  Computes sum_b p_b Q_b(x) (Cai and Vasconcelos 2020, equation 9). With the
  straight-through gradients of `quantizers.fake_quantize`, a gradient g of the
  mixture becomes

      of x         g sum_b p_b [x inside the clipping range of b]
      of step_b    p_b sum_x g dQ_b/dstep_b
      of p_b       sum_x g Q_b(x)
      of the shift -sum_b p_b sum_x g [x outside the clipping range of b]

  where a float candidate has Q(x) = x. The backward pass keeps a copy of the
  tensor for every candidate.

  Args:
    x: the tensor, float, any shape.
    steps: one step for each candidate, shape (candidates,), or (candidates,
      channels) with the channels on the last axis of x.
    probabilities: shape (candidates,).
    grids: the codes of each candidate.
    shift: what they were moved down by, shape (); only its gradient counts here
      (Bhalgat et al. 2020, section 3.1).
    offset: added to every code.
    step_gradient: 'full' or 'clip', see `quantizers.fake_quantize`.

  Returns:
    The mixture, shape and dtype of x; summed in float32 or better.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  total = jnp.zeros_like(wide)
  if shift is not None:
    # Zero, with a gradient: to move the zero is to move the tensor and back.
    moved = shift - jax.lax.stop_gradient(shift)
    wide, total = wide + moved, total - moved * probabilities.sum()
  for step, probability, lower, upper, is_float in zip(
    steps, probabilities, *grids, strict=True
  ):
    quantized = quantizers.fake_quantize(
      wide, step, lower, upper, offset=offset, step_gradient=step_gradient
    )
    total += probability * jnp.where(is_float, wide, quantized)
  return total.astype(x.dtype)
