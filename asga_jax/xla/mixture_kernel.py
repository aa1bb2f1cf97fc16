"""The backward pass of a mixture as one kernel, for a single CUDA device.

XLA makes the gradient of the tensor and the sums of the candidates by several
kernels, which read the tensors once for every few candidates. This one reads
them once, whatever the number of candidates. It has no gradient itself.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from asga_jax.xla import target

# Elements and warps of one program of the kernel: the fastest of five pairs on
# an H200. Programs of several blocks, summed once at their end, were slower.
BLOCK = 2048
WARPS = 4
# Below, the launch of any kernel takes longer than what it does.
SMALLEST = 1 << 16


class Gradients(NamedTuple):
  """What a backward pass of a mixture makes of a tensor and its gradient."""

  dx: jax.Array  # shape and dtype of the tensor
  quantized: jax.Array  # shape=(candidates,), dtype=float32: of g * Q_b(x)
  steps: jax.Array  # shape of the steps, dtype=float32: of g * dQ_b/dstep


def runs(x: jax.Array, steps: jax.Array) -> bool:
  """Say whether the kernel can serve a tensor, on the devices at hand.

  They have to be one CUDA device of compute capability 8.0 or higher: a tensor
  that is split over several is left to XLA.

  Args:
    x: the tensor.
    steps: of the candidates.

  Returns:
    True for float32, bfloat16 or float16 of `SMALLEST` to 2^31 - 1 elements,
    where there is one step a candidate, not one a channel.
  """
  return (
    steps.ndim == 1
    and SMALLEST <= x.size < 1 << 31
    and x.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
    and target.platform() == "gpu"
    and _capable()
  )


@functools.cache
def _capable() -> bool:
  if jax.default_backend() != "gpu" or jax.device_count() != 1:
    return False
  capability = getattr(jax.devices()[0], "compute_capability", "")
  major = capability.partition(".")[0]
  return major.isdecimal() and int(major) >= 8


def _round(x: jax.Array) -> jax.Array:
  """Round to even, for which Pallas knows no instruction on a GPU."""
  (rounded,) = triton.elementwise_inline_asm(
    "cvt.rni.f32.f32 $0, $1;",
    args=[x],
    constraints="=f,f",
    pack=1,
    result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
  )
  return rounded


def _iota(size: int) -> jax.Array:
  return jax.lax.iota(jnp.int32, size)


def _kernel(
  x_ref, g_ref, table_ref, dx_ref, sums_ref, *, offset, full, candidates, round_
):
  program = pl.program_id(0)
  start = program * BLOCK
  here = pl.ds(start, BLOCK)
  inside_tensor = start + _iota(BLOCK) < x_ref.shape[0]
  x, g = (
    triton.load(ref.at[here], mask=inside_tensor, other=0).astype(jnp.float32)
    for ref in (x_ref, g_ref)
  )
  lane = _iota(sums_ref.shape[1])
  sums = jnp.zeros(lane.shape, jnp.float32)
  slope = jnp.zeros_like(x)
  for index in range(candidates):
    step, inverse, lower, upper, is_float, probability = (
      table_ref[row, index] for row in range(6)
    )
    is_float = is_float > 0
    scaled = x * inverse - offset
    code = round_(jnp.minimum(jnp.maximum(scaled, lower), upper))
    inside = (scaled > lower) & (scaled < upper)
    slope += jnp.where(inside | is_float, probability, 0.0)
    quantized = jnp.where(is_float, x, step * (code + offset))
    inner = code - scaled if full else jnp.zeros_like(x)
    step_slope = jnp.where(inside, inner, code + offset)
    step_slope = jnp.where(is_float, 0.0, step_slope)
    sums += jnp.where(lane == index, jnp.sum(g * quantized), 0.0)
    sums += jnp.where(lane == candidates + index, jnp.sum(g * step_slope), 0.0)
  triton.store(
    dx_ref.at[here], (g * slope).astype(dx_ref.dtype), mask=inside_tensor
  )
  sums_ref[program, :] = sums


def gradients(
  x: jax.Array,
  g: jax.Array,
  table: jax.Array,
  *,
  offset: float,
  step_gradient: str,
  interpret: bool = False,
) -> Gradients:
  """Compute the gradient of the tensor and the sums over it.

  Args:
    x: the tensor, any shape, float32 or narrower.
    g: the gradient of its mixture, shape and dtype of x.
    table: shape (6, candidates): steps, their inverses, lowest and highest
      codes, 1 for a float candidate and else 0, probabilities.
    offset: added to every code.
    step_gradient: 'full' or 'clip', see `quantizers.fake_quantize`.
    interpret: whether to run it without a GPU, for tests.

  Returns:
    Gradient and sums. Lowering it for another platform than CUDA is an error.
  """
  candidates = table.shape[1]
  programs = pl.cdiv(x.size, BLOCK)
  # Triton's arrays have a power of two of elements.
  lanes = pl.next_power_of_2(2 * candidates)
  dx, partial = pl.pallas_call(
    functools.partial(
      _kernel,
      offset=offset,
      full=step_gradient == "full",
      candidates=candidates,
      round_=jnp.round if interpret else _round,
    ),
    grid=(programs,),
    out_shape=(
      jax.ShapeDtypeStruct((x.size,), x.dtype),
      jax.ShapeDtypeStruct((programs, lanes), jnp.float32),
    ),
    compiler_params=None
    if interpret
    else triton.CompilerParams(num_warps=WARPS),
    interpret=interpret,
    name="mixture_backward",
  )(x.ravel(), g.ravel(), table.astype(jnp.float32))
  totals = partial.sum(axis=0)
  return Gradients(
    dx.reshape(x.shape),
    totals[:candidates],
    totals[candidates : 2 * candidates],
  )
