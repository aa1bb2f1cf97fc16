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

from asga_jax.quantization import initial_steps
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
      raise ValueError(f"{name} has {bit!r}; {accepted}.")
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


def _columns(x: jax.Array, like: jax.Array) -> jax.Array:
  return x.reshape(x.shape + (1,) * (like.ndim - x.ndim))


def _least_error_steps(sample, lower, upper):
  steps = np.asarray(initial_steps.mse_step(sample, lower, upper))
  return jnp.asarray(np.maximum(steps, np.float32(SMALLEST_STEP)))


class LSQ(Quantizer):
  """Learned step sizes (Esser et al. 2020), started at the least error.

  Their gradient is not scaled by 1/sqrt(N upper), as it is there for SGD: Adam,
  which trains them here, divides every scale out again.
  """

  def initial_parameter(self, sample, bits, signed):
    """Give the steps of least squared error."""
    lower, upper = levels(jnp.asarray(bits), signed, self.narrow)
    return _least_error_steps(sample, lower, upper)

  def step(self, parameter, upper):
    """Give the parameter."""
    del upper
    return parameter


class LSQPlus(LSQ):
  """Learned step sizes and zero points (Bhalgat et al. 2020), of activations.

  Codes -z to 2^b - 1 - z have a zero point z for each bit-width, which starts
  with the step at the least error: 0 for what is never negative, near the
  middle for what is symmetric, between them for what dips below zero. A shift
  in units of the tensor, one for all candidates, is learned beside it; that of
  one candidate is the offset beta of the paper. Zero points are whole numbers,
  so that a zero stays a zero.
  """

  @property
  def learns_zero(self):
    """The zero point is learned."""
    return True

  def start(self, sample, bits, signed):
    """Give steps and zero points of least squared error."""
    del signed
    if not isinstance(sample, Statistics):
      sample = Statistics.of(sample)
    highest = [(1 << bit) - 1 for bit in bits]
    steps, zeros = initial_steps.mse_grid(sample, highest)
    steps = np.maximum(steps, np.float32(SMALLEST_STEP))
    # Never zero, since it is trained by its relative size.
    shift = np.mean(steps * zeros) or np.mean(steps)
    lower = (shift / steps - zeros).astype(np.float32)
    return Start(
      jnp.asarray(steps),
      jnp.asarray(lower),
      jnp.asarray(lower + np.array(highest, np.float32)),
      jnp.asarray(shift, jnp.float32),
    )


class PACT(Quantizer):
  """A learned clipping value (Choi et al. 2018); it is the parameter."""

  @property
  def step_gradient(self):
    """Only clipped elements move the clipping value."""
    return "clip"

  def initial_parameter(self, sample, bits, signed):
    """Give the clipping values of least squared error."""
    lower, upper = levels(jnp.asarray(bits), signed, self.narrow)
    steps = _least_error_steps(sample, lower, upper)
    return steps * _columns(upper, steps)

  def step(self, parameter, upper):
    """Give the clipping value over the highest code."""
    return parameter / _columns(upper, parameter).astype(parameter.dtype)


class HWGQ(Quantizer):
  """Steps fixed by a Gaussian of the tensor's scale (Cai et al. 2017)."""

  def initial_parameter(self, sample, bits, signed):
    """Give the optimal steps for a Gaussian, by the sample's second moment."""
    if isinstance(sample, Statistics):
      second_moment = jnp.float32(sample.second_moment)
    else:
      second_moment = jnp.mean(sample.astype(jnp.float32) ** 2, axis=0)
    # Half of the mass of a half-wave Gaussian lies at zero.
    scale = jnp.sqrt(second_moment * (1.0 if signed else 2.0))
    scale = jnp.where(scale > 0, scale, 1.0)
    lower, upper = levels(jnp.asarray(bits), signed, self.narrow)
    factors = [
      0.0
      if bit == FLOAT_BITS
      else initial_steps.gaussian_step(int(low), int(high))
      for bit, low, high in zip(bits, lower, upper, strict=True)
    ]
    steps = jnp.asarray(factors).reshape((-1,) + (1,) * scale.ndim) * scale
    return jnp.maximum(steps, SMALLEST_STEP)

  def step(self, parameter, upper):
    """Give the parameter, which is not trained."""
    del upper
    return jax.lax.stop_gradient(parameter)


class DoReFa(Quantizer):
  """Fixed steps on the unit range (Zhou et al. 2016, equations 9 and 11).

  Weights pass through tanh and a division by the largest, and take a grid of
  2^b levels without a zero; activations are clipped to the unit range.
  """

  @property
  def narrow(self):
    """The grid of weights has all 2^b levels."""
    return False

  @property
  def offset(self):
    """Weights lie on a grid without a zero."""
    return 0.5 if self.weights else 0.0

  def transform(self, x):
    """Squash weights into the unit range, leaves activations alone."""
    if not self.weights:
      return x
    squashed = jnp.tanh(x)
    largest = jnp.max(jnp.abs(squashed))
    return squashed / jnp.where(largest > 0, largest, 1)

  def undo_transform(self, x):
    """Give weights that are squashed to this, where its largest is 1."""
    # Which the division by the largest takes back: arctanh(1) is infinite.
    return jnp.arctanh(x / 2) if self.weights else x

  def initial_parameter(self, sample, bits, signed):
    """Give the end of the range, 1."""
    del signed
    channels = () if isinstance(sample, Statistics) else sample.shape[1:]
    return jnp.ones((len(bits), *channels))

  def step(self, parameter, upper):
    """Give the step that spreads the levels over the unit range."""
    top = _columns(upper, parameter) + self.offset
    return jax.lax.stop_gradient(parameter / top.astype(parameter.dtype))


QUANTIZERS: dict[str, type[Quantizer]] = {
  "lsq": LSQ,
  "lsq_plus": LSQPlus,
  "pact": PACT,
  "dorefa": DoReFa,
  "hwgq": HWGQ,
}


def make_quantizer(name: str, *, weights: bool, per_channel: bool) -> Quantizer:
  """Make a quantizer by its name.

  Args:
    name: one of `QUANTIZERS`.
    weights: whether it quantizes weights (else activations).
    per_channel: whether each channel has its own step.

  Returns:
    The quantizer.

  Raises:
    ValueError: unknown name.
  """
  if name not in QUANTIZERS:
    raise ValueError(
      f"unknown quantizer {name!r}; expected one of {sorted(QUANTIZERS)}."
    )
  if weights and QUANTIZERS[name] is LSQPlus:
    raise ValueError(
      "quantizer 'lsq_plus' has a zero point, which is for activations;"
      " expected another one for weights, such as 'lsq'."
    )
  return QUANTIZERS[name](weights=weights, per_channel=per_channel)
