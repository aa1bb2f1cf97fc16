"""The mixture of a tensor's quantized forms, as one custom VJP.

The forward pass keeps the tensor alone; the backward pass computes the codes
again, so that memory does not grow with the number of candidates.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from asga_jax.quantization import quantizers
from asga_jax.xla import candidate_sums, mixture_kernel, outline


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


def naive_mixture(
  x: jax.Array,
  steps: jax.Array,
  probabilities: jax.Array,
  grids: Grids,
  offset: float = 0.0,
  step_gradient: str = "full",
) -> jax.Array:
  """Sum the quantized forms one by one: the reference for `mixture`.

  Takes and returns what `mixture` does; its backward pass keeps a copy of the
  tensor for every candidate.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  total = jnp.zeros_like(wide)
  for index in range(steps.shape[0]):
    quantized = quantizers.fake_quantize(
      wide,
      steps[index],
      grids.lower[index],
      grids.upper[index],
      offset=offset,
      step_gradient=step_gradient,
    )
    quantized = jnp.where(grids.is_float[index], wide, quantized)
    total += probabilities[index] * quantized
  return total.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def mixture(
  x: jax.Array,
  steps: jax.Array,
  probabilities: jax.Array,
  grids: Grids,
  offset: float = 0.0,
  step_gradient: str = "full",
) -> jax.Array:
  """Mix the quantized forms of a tensor by their probabilities.

  Computes sum_b p_b Q_b(x) (Cai and Vasconcelos 2020, equation 9), with the
  straight-through gradients of `quantizers.fake_quantize`.

  Args:
    x: the tensor, float, any shape.
    steps: one step for each candidate, shape (candidates,), or (candidates,
      channels) with the channels on the last axis of x.
    probabilities: shape (candidates,).
    grids: the codes of each candidate.
    offset: added to every code.
    step_gradient: 'full' or 'clip', see `quantizers.fake_quantize`.

  Returns:
    The mixture, shape and dtype of x.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  scales = _scales(steps.astype(wide.dtype))
  terms = []
  for step, inverse, *grid, probability in zip(
    *scales, *grids, probabilities, strict=True
  ):
    lower, upper, is_float = grid
    _, code, _ = candidate_sums.codes(wide, inverse, lower, upper, offset)
    quantized = jnp.where(is_float, wide, step * (code + offset))
    terms.append(probability * quantized)
  # Not from zero, so that a float tensor keeps its negative zeros.
  return sum(terms[1:], terms[0]).astype(x.dtype)


@outline.outlined
def _scales(steps: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Give steps that can be divided by, and their inverses.

  Out of line, since XLA would make of it one small kernel a candidate.
  """
  steps = jnp.maximum(steps, quantizers.SMALLEST_STEP)
  return steps, 1 / steps


def _mixture_forward(x, steps, probabilities, grids, offset, step_gradient):
  result = mixture(x, steps, probabilities, grids, offset, step_gradient)
  return result, (x, steps, probabilities, grids)


def _by_kernel(
  x, g, steps, probabilities, grids, *, offset, step_gradient, **settings
):
  """Give the tensor's gradient and the sums of the candidates, on a GPU."""
  scales = _scales(steps.astype(jnp.float32))
  found = mixture_kernel.gradients(
    x,
    g,
    jnp.stack([*scales, *grids, probabilities]),
    offset=offset,
    step_gradient=step_gradient,
    **settings,
  )
  return found.dx, found.quantized, found.steps


def _by_sweep(x, g, steps, probabilities, grids, *, offset, step_gradient):
  """Give the tensor's gradient and the sums of the candidates, by XLA."""
  # Codes and sums in a narrower type would be wrong, not just rough.
  wide = jnp.promote_types(x.dtype, jnp.float32)
  scales = _scales(steps.astype(wide))
  x_wide = x.astype(wide)
  slope = jnp.zeros_like(x_wide)
  for inverse, *grid, probability in zip(
    scales[1], *grids, probabilities, strict=True
  ):
    lower, upper, is_float = grid
    inside = candidate_sums.codes(x_wide, inverse, lower, upper, offset)[-1]
    slope += jnp.where(inside | is_float, probability, 0.0)
  dx = (g.astype(wide) * slope).astype(x.dtype)
  quantized_sums, step_sums = candidate_sums.of(
    x, g, scales[1], grids, offset=offset, step_gradient=step_gradient
  )
  is_float = grids.is_float.reshape((-1,) + (1,) * (steps.ndim - 1))
  quantized_sums = jnp.where(is_float, 1.0, scales[0]) * quantized_sums
  if steps.ndim == 2:
    quantized_sums = jnp.sum(quantized_sums, axis=1)
  return dx, quantized_sums, jnp.where(is_float, 0.0, step_sums)


@functools.cache
def _outlined_sweep(offset, step_gradient):
  """Keep the sweep out of line: else what makes g would run in each part."""
  return outline.outlined(
    functools.partial(_by_sweep, offset=offset, step_gradient=step_gradient)
  )


def _mixture_backward(offset, step_gradient, residuals, g):
  x, steps, probabilities, grids = residuals
  by_kernel = functools.partial(
    _by_kernel, offset=offset, step_gradient=step_gradient
  )
  by_sweep = _outlined_sweep(offset, step_gradient)
  operands = (x, g, steps, probabilities, grids)
  if mixture_kernel.runs(x, steps):
    # A host with a GPU may compile for its CPU as well.
    found = jax.lax.platform_dependent(
      *operands, cuda=by_kernel, default=by_sweep
    )
  else:
    found = by_sweep(*operands)
  dx, quantized_sums, step_sums = found
  weights = probabilities.reshape((-1,) + (1,) * (steps.ndim - 1))
  return (
    dx,
    (step_sums * weights).astype(steps.dtype),
    quantized_sums.astype(probabilities.dtype),
    None,
  )


mixture.defvjp(_mixture_forward, _mixture_backward)
