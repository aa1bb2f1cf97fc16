"""Where steps come from: the methods by name."""

import jax
import jax.numpy as jnp
import numpy as np

from asga_jax import checks
from asga_jax.quantization import initial_steps
from asga_jax.quantization.quantizers import (
  FLOAT_BITS,
  SMALLEST_STEP,
  Quantizer,
  Start,
  levels,
)
from asga_jax.quantization.statistics import Statistics


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
    if not isinstance(sample, Statistics):
      sample = Statistics.of(sample)
    highest = [(1 << bit) - 1 for bit in bits]
    # A zero point of values that lack negative ones leaves these no codes.
    alike = signed and not sample.signed
    steps, zeros = initial_steps.mse_grid(sample, highest, alike=alike)
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
  kind = "weight_quantizer" if weights else "activation_quantizer"
  checks.choice(kind, name, sorted(QUANTIZERS))
  checks.flag("per_channel", per_channel)
  if weights and QUANTIZERS[name] is LSQPlus:
    raise ValueError(
      "quantizer 'lsq_plus' has a zero point, which is for activations;"
      " expected another one for weights, such as 'lsq'."
    )
  return QUANTIZERS[name](weights=weights, per_channel=per_channel)
