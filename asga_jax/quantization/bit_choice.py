"""The choice of a tensor's bit-width: its variables and its forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.quantization import mixture as mixture_lib
from asga_jax.quantization import quantizers, statistics
from asga_jax.xla import mixture as fast_mixture


class BitLogits(nnx.Variable):
  """Logits of the candidates, shape (candidates,), float32."""


class QuantizerParameter(nnx.Variable):
  """Steps or clipping values, (candidates,) or (candidates, channels)."""


class Temperature(nnx.Variable):
  """The temperature of every softmax over logits, shape (), float32."""


class GridData(nnx.Variable):
  """What is data, yet not trained: bits, lowest and highest codes.

  Shape (3, candidates), float32: one array, since a step passes on each. Where
  zero points are learned, codes are lower by the shift over the step.
  """


def read_grids(data: jax.Array) -> mixture_lib.Grids:
  """Read the candidates' grids from `GridData`, shape (3, candidates)."""
  bits, lower, upper = data
  return mixture_lib.Grids(lower, upper, bits == quantizers.FLOAT_BITS)


def probabilities(logits: jax.Array, temperature: jax.Array) -> jax.Array:
  """Give the probabilities of the candidates, softmax(logits/temperature).

  Args:
    logits: shape (candidates,).
    temperature: positive, shape ().

  Returns:
    Shape (candidates,), summing to 1; exactly 1 for a single candidate.
  """
  return jax.nn.softmax(logits / temperature)


def mix(
  quantizer: quantizers.Quantizer,
  x: jax.Array,
  parameter: jax.Array,
  weights: jax.Array,
  grid_data: jax.Array,
  shift: jax.Array | None = None,
) -> jax.Array:
  """Quantize a tensor to the mixture of its candidates.

  Args:
    quantizer: how.
    x: the tensor.
    parameter: of the quantizer, shape (candidates,) or (candidates, channels).
    weights: the candidates' probabilities, shape (candidates,).
    grid_data: of the candidates, shape (3, candidates).
    shift: what codes are moved down by, shape (); None where they are fixed.

  Returns:
    The mixture, shape and dtype of x.
  """
  grids = read_grids(grid_data)
  steps = quantizer.step(parameter, grids.upper)
  grids = mixture_lib.move_zeros(grids, steps, shift)
  settings = fast_mixture.Settings(
    quantizer.offset, quantizer.step_gradient, quantizers.SMALLEST_STEP
  )
  transformed = quantizer.transform(x)
  if transformed is x:
    return fast_mixture.mix(x, steps, weights, grids, settings, shift)
  # A float candidate is the tensor itself, not its transform.
  kept = jnp.where(grids.is_float, weights, 0)
  quantized = fast_mixture.mix(
    transformed, steps, weights - kept, grids, settings
  )
  return quantized + kept.sum().astype(x.dtype) * x


class BitChoice(nnx.Module):
  """A tensor's candidate bit-widths, their logits and their quantizers.

  With one candidate it is that quantizer.
  """

  def __init__(
    self,
    bits: tuple[int, ...],
    sample: jax.Array,
    *,
    quantizer: quantizers.Quantizer,
    signed: bool,
    temperature: Temperature,
    logits: BitLogits | None = None,
  ):
    """Make the choice, with equal logits.

    Args:
      bits: the candidates.
      sample: values of the tensor to take the initial ranges from, shape (n,)
        or, with a step for each channel, (n, channels).
      quantizer: how to quantize.
      signed: whether codes may be negative.
      temperature: shared by all choices of a network.
      logits: those of another tensor, to share its bits.
    """
    bits = quantizers.check_bits(bits, "bits")
    self.quantizer = quantizer
    # Whether `logits` holds probabilities: within a training step, which
    # computes those of all tensors at once.
    self.holds_probabilities = False
    start = quantizer.start(sample, bits, signed)
    codes = jnp.asarray(bits, jnp.float32), start.lower, start.upper
    self.grid = GridData(jnp.stack(codes))
    self.temperature = temperature
    self.logits = BitLogits(jnp.zeros(len(bits))) if logits is None else logits
    self.parameter = QuantizerParameter(start.parameter)
    fixed = start.shift is None
    self.shift = None if fixed else QuantizerParameter(start.shift)

  def candidates(self) -> tuple[int, ...]:
    """Give the candidates as integers; not under a trace."""
    return tuple(np.asarray(self.grid[...])[0].astype(int).tolist())

  def restart(
    self, sample: jax.Array | statistics.Statistics, signed: bool
  ) -> None:
    """Start parameter and codes anew, given values of the tensor."""
    start = self.quantizer.start(sample, self.candidates(), signed)
    self.parameter[...] = start.parameter.astype(self.parameter[...].dtype)
    self.set_codes(start.lower, start.upper)
    if self.shift is not None:
      self.shift[...] = start.shift

  def set_codes(self, lower: jax.Array, upper: jax.Array) -> None:
    """Set the lowest and the highest codes, shape (candidates,) each."""
    self.grid[...] = jnp.stack([self.grid[...][0], lower, upper])

  def keep(self, index: int) -> None:
    """Drop all candidates but one."""
    kept = slice(index, index + 1)
    self.grid = GridData(self.grid[...][:, kept])
    self.parameter = QuantizerParameter(self.parameter[...][kept])
    self.logits = BitLogits(jnp.zeros(1))

  def take_from(self, other: "BitChoice") -> bool:
    """Take over parameter and signedness learned for the same single bits.

    Args:
      other: of the same tensor, with one candidate or more.

    Returns:
      Whether it has these bits, and quantizes in the same way.
    """
    (bits,) = self.candidates()
    if bits not in other.candidates() or self.quantizer != other.quantizer:
      return False
    index = other.candidates().index(bits)
    kept = slice(index, index + 1)
    parameter = other.parameter[...][kept]
    if parameter.shape != self.parameter.shape:
      return False
    self.parameter[...] = parameter
    self.grid[...] = other.grid[...][:, kept]
    if self.shift is not None and other.shift is not None:
      self.shift[...] = other.shift[...]
    return True

  def grids(self) -> mixture_lib.Grids:
    """Give the grids of the candidates."""
    *_, shift = self.learned()
    return mixture_lib.move_zeros(
      read_grids(self.grid[...]), self.steps(), shift
    )

  def steps(self) -> jax.Array:
    """Give the steps, (candidates,) or (candidates, channels)."""
    upper = read_grids(self.grid[...]).upper
    return self.quantizer.step(self.parameter[...], upper)

  def probabilities(self) -> jax.Array:
    """Give the probabilities of the candidates, shape (candidates,)."""
    if self.holds_probabilities:
      return self.logits[...]
    return probabilities(self.logits[...], self.temperature[...])

  def learned(self) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Give the parameter, the probabilities, and the shift if there is one."""
    shift = None if self.shift is None else self.shift[...]
    return self.parameter[...], self.probabilities(), shift

  def codes(self, x: jax.Array) -> jax.Array:
    """Give the integer codes at the most likely candidate; 0 for float."""
    best = jnp.argmax(self.probabilities())
    step, lower, upper, is_float = (
      jax.lax.dynamic_index_in_dim(values, best, keepdims=False)
      for values in (self.steps(), *self.grids())
    )
    step = jnp.maximum(step, quantizers.SMALLEST_STEP)
    scaled = self.quantizer.transform(x) / step - self.quantizer.offset
    return jnp.where(is_float, 0, jnp.round(jnp.clip(scaled, lower, upper)))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Quantize a tensor to the mixture of its candidates.

    Args:
      x: the tensor.

    Returns:
      The mixture, shape and dtype of x.
    """
    parameter, weights, shift = self.learned()
    return mix(
      self.quantizer,
      x,
      parameter,
      weights,
      self.grid[...],
      shift,
    )
