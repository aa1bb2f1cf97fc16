"""The mixture of a tensor's quantized forms, in the form that is fast here.

The formula is that of `quantization.mixture`. Here the forward pass keeps the
tensor alone, and the backward pass computes the codes again, so that memory
does not grow with the number of candidates: on one CUDA device by a kernel of
its own (see `mixture_kernel`), elsewhere by XLA (see `candidate_sums`).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from asga_jax.xla import (
  candidate_sums,
  mixture_kernel,
  outline,
  promotion,
  reductions,
  target,
)

# Lowest and highest codes, and which candidates are the tensor as it is; each
# of shape (candidates,).
Grids = tuple[jax.Array, jax.Array, jax.Array]


class Settings(NamedTuple):
  """What is fixed about a mixture, whatever its tensor."""

  offset: float  # added to every code
  step_gradient: str  # 'full', or 'clip' for the part of clipped elements alone
  smallest_step: float  # what a smaller step is used as


def mix(
  x: jax.Array,
  steps: jax.Array,
  probabilities: jax.Array,
  grids: Grids,
  settings: Settings,
  shift: jax.Array | None = None,
) -> jax.Array:
  """Mix the quantized forms of a tensor by their probabilities.

  It has a gradient in the tensor, the steps, the probabilities and the shift,
  in reverse mode alone.

  Args:
    x: the tensor, float, any shape.
    steps: one step for each candidate, shape (candidates,), or (candidates,
      channels) with the channels on the last axis of x.
    probabilities: shape (candidates,).
    grids: the codes of each candidate.
    settings: what is fixed.
    shift: what the grids were moved down by, shape (), or None; only its
      gradient is made here.

  Returns:
    The mixture, shape and dtype of x.
  """
  mixed = _mix(x, steps, probabilities, grids, shift, settings)
  # On a TPU, XLA makes one kernel of a product and what it reads: all
  # candidates again for each pass over the mixture, and twice the time to
  # compile.
  if target.platform() == "tpu":
    mixed = jax.lax.optimization_barrier(mixed)
  return mixed


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _mix(x, steps, probabilities, grids, shift, settings):
  del shift
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  scales = _scales(settings.smallest_step)(steps.astype(wide.dtype))
  offset = settings.offset
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


@functools.cache
def _scales(
  smallest: float,
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
  """Make what gives steps that can be divided by, and their inverses.

  Out of line, since XLA would make of it one small kernel a candidate.
  """

  def scales(steps):
    steps = jnp.maximum(steps, smallest)
    return steps, 1 / steps

  return outline.outlined(scales)


def by_kernel(x, g, steps, probabilities, grids, *, settings, interpret=False):
  """Give the tensor's gradient and the sums of the candidates, on a GPU."""
  scales = _scales(settings.smallest_step)(steps.astype(jnp.float32))
  return mixture_kernel.gradients(
    x,
    g,
    jnp.stack([*scales, *grids, probabilities]),
    offset=settings.offset,
    step_gradient=settings.step_gradient,
    interpret=interpret,
  )


def by_sweep(x, g, steps, probabilities, grids, *, settings):
  """Give what `by_kernel` does, by XLA, where there may be a step a channel."""
  # Codes and sums in a narrower type would be wrong, not just rough.
  wide = jnp.promote_types(x.dtype, jnp.float32)
  scales = _scales(settings.smallest_step)(steps.astype(wide))
  offset, step_gradient, _ = settings
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
  is_float = grids[2].reshape((-1,) + (1,) * (steps.ndim - 1))
  quantized_sums = jnp.where(is_float, 1.0, scales[0]) * quantized_sums
  if steps.ndim == 2:
    quantized_sums = jnp.sum(quantized_sums, axis=1)
  step_sums = jnp.where(is_float, 0.0, step_sums)
  return mixture_kernel.Gradients(dx, quantized_sums, step_sums)


@functools.cache
def _outlined_sweep(settings):
  """Keep the sweep out of line: else what makes g would run in each part."""
  return outline.outlined(functools.partial(by_sweep, settings=settings))


def _forward(x, steps, probabilities, grids, shift, settings):
  result = _mix(x, steps, probabilities, grids, shift, settings)
  return result, (x, steps, probabilities, grids, shift)


@promotion.usual()
def _backward(settings, residuals, g):
  x, steps, probabilities, grids, shift = residuals
  sweep = _outlined_sweep(settings)
  operands = (x, g, steps, probabilities, grids)
  if mixture_kernel.runs(x, steps):
    # A host with a GPU may compile for its CPU as well.
    kernel = functools.partial(by_kernel, settings=settings)
    found = jax.lax.platform_dependent(*operands, cuda=kernel, default=sweep)
  else:
    found = sweep(*operands)
  weights = probabilities.reshape((-1,) + (1,) * (steps.ndim - 1))
  return (
    found.dx,
    (found.steps * weights).astype(steps.dtype),
    found.quantized.astype(probabilities.dtype),
    None,
    None if shift is None else _shift_gradient(found.dx, g, residuals),
  )


def _shift_gradient(dx, g, residuals):
  """Sum what is lost of the gradient where the tensor is clipped."""
  _, _, probabilities, _, shift = residuals
  wide = jnp.promote_types(g.dtype, jnp.float32)
  # In the order of the slopes in dx. Where no candidate clips, nothing is lost,
  # and no rounding either: Adam would make a walk of it.
  whole = g.astype(wide) * sum(probabilities[1:], probabilities[0])
  dx, whole = dx.astype(wide), whole.astype(g.dtype).astype(wide)
  lost = jnp.where(dx == whole, 0, dx - whole)
  return reductions.total([lost]).astype(shift.dtype)


_mix.defvjp(_forward, _backward)
