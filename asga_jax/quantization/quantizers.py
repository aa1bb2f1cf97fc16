"""Uniform fake quantization with straight-through gradients.

All methods share one form, with a step s, integer levels lower..upper and a
code offset o (0, or 1/2 for a grid without a zero):

    Q(x) = s (round(clip(x / s - o, lower, upper)) + o)

They differ in where the step comes from and in which gradient it receives.
"""

import abc
import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asga_jax import checks
from asga_jax.quantization.statistics import Statistics

FLOAT_BITS = 32
BITS = (*range(2, 9), FLOAT_BITS)
# A step that training drives below this is used as this; its gradient still
# passes, so that it can come back. The smallest whose inverse is a float32 as
# well: inputs have any unit.
SMALLEST_STEP = float(np.finfo(np.float32).tiny)


def check_bits(bits: int | tuple[int, ...], name: str) -> tuple[int, ...]:
  """Check candidate bit-widths and return them as a tuple.

  Args:
    bits: one bit-width or a sequence of them, each in 2..8, or 32 for float.
    name: what to call them in an error.

  Returns:
    The candidates.

  Raises:
    ValueError: no candidate, one given twice, or one out of range.
  """
  single = not isinstance(bits, Iterable) or getattr(bits, "ndim", None) == 0
  candidates: Any = (bits,) if single else tuple(bits)  # type: ignore[arg-type]
  accepted = "expected distinct bit-widths in 2..8, or 32 for float"
  if not candidates:
    raise ValueError(f"{name} is empty; {accepted}.")
  for bit in candidates:
    if not isinstance(bit, int | float | np.generic) or bit not in BITS:
      raise ValueError(f"{name} has {checks.short(bit)}; {accepted}.")
  if len(set(candidates)) != len(candidates):
    raise ValueError(f"{name} is {candidates}, with duplicates; {accepted}.")
  return tuple(int(bit) for bit in candidates)


def levels(
  bits: jax.Array, signed: jax.Array, narrow: bool
) -> tuple[jax.Array, jax.Array]:
  """Give the lowest and the highest integer code of a bit-width.

  Args:
    bits: bit-widths, int32 or float32, any shape.
    signed: whether codes may be negative, bool, shape ().
    narrow: whether the lowest code of a signed grid is minus the highest.

  Returns:
    lower, upper: float32, of the shape of `bits`.
  """
  signed = jnp.asarray(signed)
  half = jnp.exp2(bits.astype(jnp.float32) - 1)
  lower = jnp.where(signed, -half + (1.0 if narrow else 0.0), 0.0)
  upper = jnp.where(signed, half, 2 * half) - 1
  return lower, upper


def fake_quantize(
  x: jax.Array,
  step: jax.Array,
  lower: jax.Array,
  upper: jax.Array,
  *,
  offset: float = 0.0,
  step_gradient: str = "full",
) -> jax.Array:
  """Round a tensor to a uniform grid, straight through in the backward pass.

  The gradient of x is 1 inside the clipping range and 0 outside. That of the
  step is (code + offset) outside and, with `step_gradient='full'`,
  round(x/s) - x/s inside (Esser et al. 2020, equation 3); `'clip'` leaves the
  inner part out (Choi et al. 2018, equation 3).

  Args:
    x: the tensor, float, any shape.
    step: positive, broadcastable against x.
    lower: the lowest code, broadcastable against x.
    upper: the highest code, broadcastable against x.
    offset: added to every code.
    step_gradient: 'full' or 'clip'.

  Returns:
    The quantized tensor, shape and dtype of x.
  """
  wide = jnp.promote_types(x.dtype, jnp.float32)
  given = jax.lax.stop_gradient(step).astype(wide)
  held = jnp.maximum(given, SMALLEST_STEP)
  # Above the smallest step this adds a zero, whose gradient is one.
  step = held + (step.astype(wide) - given)
  scaled = x.astype(wide) * (1 / held)
  # By the step over itself, since the square of a small one is no float32.
  code = scaled / (step / held) - offset
  inside = (code > lower) & (code < upper)
  if step_gradient == "clip":
    step = jnp.where(inside, held, step)
    code = scaled / (step / held) - offset
  code = jnp.where(
    inside, code, jax.lax.stop_gradient(jnp.clip(code, lower, upper))
  )
  rounded = jax.lax.stop_gradient(jnp.round(code)) + (
    code - jax.lax.stop_gradient(code)
  )
  return (step * (rounded + offset)).astype(x.dtype)


class Start(NamedTuple):
  """Where a tensor's quantizers start."""

  parameter: jax.Array  # shape=(candidates,) or (candidates, channels)
  lower: jax.Array  # shape=(candidates,), dtype=float32: lowest codes
  upper: jax.Array  # shape=(candidates,), dtype=float32: highest codes
  # Shape (), where the zero point is learned: codes are lower by this in steps.
  shift: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Quantizer(abc.ABC):
  """How a tensor is quantized: where its steps come from.

  The parameter of a tensor has the shape (candidates,), or (candidates,
  channels) where each channel, on the last axis, has its own.
  """

  # Whether it quantizes weights (else activations).
  weights: bool = False
  # Whether each channel on the last axis has its own step.
  per_channel: bool = False

  @property
  def narrow(self) -> bool:
    """Whether a signed grid leaves out its lowest code."""
    return self.weights

  @property
  def offset(self) -> float:
    """What is added to every code."""
    return 0.0

  @property
  def step_gradient(self) -> str:
    """Which gradient a step receives, see `fake_quantize`."""
    return "full"

  def transform(self, x: jax.Array) -> jax.Array:
    """Map the tensor before it is rounded."""
    return x

  def undo_transform(self, x: jax.Array) -> jax.Array:
    """Give a tensor that `transform` maps to this quantized one."""
    return x

  @abc.abstractmethod
  def initial_parameter(
    self, sample: jax.Array | Statistics, bits: tuple[int, ...], signed: bool
  ) -> jax.Array:
    """Give the parameter to start from, given values of the tensor."""

  @property
  def learns_zero(self) -> bool:
    """Whether the codes' zero point is learned, see `LSQPlus`."""
    return False

  def start(
    self, sample: jax.Array | Statistics, bits: tuple[int, ...], signed: bool
  ) -> "Start":
    """Give parameter and codes to start from, given values of the tensor."""
    lower, upper = levels(jnp.asarray(bits), jnp.asarray(signed), self.narrow)
    return Start(self.initial_parameter(sample, bits, signed), lower, upper)

  @abc.abstractmethod
  def step(self, parameter: jax.Array, upper: jax.Array) -> jax.Array:
    """Give the steps from the parameter and the highest codes."""
