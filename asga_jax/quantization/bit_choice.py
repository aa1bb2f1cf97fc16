"""The choice of a tensor's bit-width: its variables and its forward pass."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from asga_jax.quantization import mixture as mixture_lib
from asga_jax.quantization import quantizers


class BitLogits(nnx.Variable):
  """Logits of the candidates, shape (candidates,), float32."""


class QuantizerParameter(nnx.Variable):
  """Steps or clipping values, (candidates,) or (candidates, channels)."""


class Temperature(nnx.Variable):
  """The temperature of every softmax over logits, shape (), float32."""


class GridData(nnx.Variable):
  """What is data, yet not trained: candidate bits and signedness."""


def probabilities(logits: jax.Array, temperature: jax.Array) -> jax.Array:
  """Gives the probabilities of the candidates, softmax(logits/temperature).

  Args:
    logits: shape (candidates,).
    temperature: positive, shape ().

  Returns:
    Shape (candidates,), summing to 1; exactly 1 for a single candidate.
  """
  return jax.nn.softmax(logits / temperature)


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
    """Makes the choice, with equal logits.

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
    self.bits = GridData(jnp.asarray(bits, jnp.int32))
    self.signed = GridData(jnp.asarray(signed))
    self.temperature = temperature
    self.logits = BitLogits(jnp.zeros(len(bits))) if logits is None else logits
    self.parameter = QuantizerParameter(
      quantizer.initial_parameter(sample, bits, signed)
    )

  def candidates(self) -> tuple[int, ...]:
    """Gives the candidates as integers; not under a trace."""
    return tuple(int(bit) for bit in self.bits[...])

  def grids(self) -> mixture_lib.Grids:
    """Gives the grids of the candidates."""
    return mixture_lib.make_grids(
      self.bits[...], self.signed[...], self.quantizer.narrow
    )

  def steps(self, count: int) -> jax.Array:
    """Gives the steps, for a tensor of `count` elements that share one."""
    return self.quantizer.step(self.parameter[...], self.grids().upper, count)

  def codes(self, x: jax.Array) -> jax.Array:
    """Gives the integer codes at the most likely candidate; 0 for float."""
    best = jnp.argmax(self.logits[...])
    grids = self.grids()
    step = jnp.maximum(self.steps(1)[best], quantizers.SMALLEST_STEP)
    scaled = self.quantizer.transform(x) / step - self.quantizer.offset
    codes = jnp.round(jnp.clip(scaled, grids.lower[best], grids.upper[best]))
    return jnp.where(grids.is_float[best], 0, codes)

  def __call__(self, x: jax.Array, count: int) -> jax.Array:
    """Quantizes a tensor to the mixture of its candidates.

    Args:
      x: the tensor.
      count: how many elements share one step (of one image, for activations);
        it scales the step's gradient.

    Returns:
      The mixture, shape and dtype of x.
    """
    grids = self.grids()
    mixed = functools.partial(
      mixture_lib.mixture,
      steps=self.steps(count),
      grids=grids,
      offset=self.quantizer.offset,
      step_gradient=self.quantizer.step_gradient,
    )
    weights = probabilities(self.logits[...], self.temperature[...])
    transformed = self.quantizer.transform(x)
    if transformed is x:
      return mixed(x, probabilities=weights)
    # A float candidate is the tensor itself, not its transform.
    kept = jnp.where(grids.is_float, weights, 0)
    quantized = mixed(transformed, probabilities=weights - kept)
    return quantized + kept.sum().astype(x.dtype) * x
