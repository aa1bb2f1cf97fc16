"""Products whose operands have a choice of bits.

A layer keeps its class, its methods, its variables and its paths; only what it
calls to multiply is another one, which quantizes the two operands that it is
handed, whatever made them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx

from asga_jax.network import kinds as layer_kinds
from asga_jax.network import program
from asga_jax.quantization import bit_choice, quantizers
from asga_jax.xla import outline, promotion


@functools.lru_cache(maxsize=1024)
def _mixed_product(
  product: Callable[..., jax.Array],
  settings: tuple[Any, Any],
  activation: quantizers.Quantizer,
  weight: quantizers.Quantizer,
  outputs: tuple[int, ...],
) -> Callable[..., jax.Array]:
  """Make the product of two mixed operands, one function for equal layers."""
  args, kwargs = settings

  def mix_kernel(w, *others):
    if outputs == (w.ndim - 1,):
      return bit_choice.mix(weight, w, *others)
    # Channels have their own steps along a last axis.
    matrix = layer_kinds.to_matrix(w, outputs)
    mixed = bit_choice.mix(weight, matrix, *others)
    return layer_kinds.from_matrix(mixed, w.shape, outputs)

  @promotion.usual()
  def function(variables, constants):
    (x, x_step, x_weights, shift), (w, *w_learned, _) = variables
    x_grids, w_grids = constants
    return product(
      bit_choice.mix(activation, x, x_step, x_weights, x_grids, shift),
      mix_kernel(w, *w_learned, w_grids),
      *args,
      **dict(kwargs),
    )

  return outline.recomputed(function)


def _hashable(value: Any) -> Any:
  if isinstance(value, dict):
    return tuple((name, _hashable(item)) for name, item in value.items())
  if type(value) in (list, tuple):
    return tuple(_hashable(item) for item in value)
  return value


class ShareBelowZero(program.Unsaved):
  """The largest share of an unsigned input that was negative, shape ()."""


class QuantizedProduct(nnx.Module):
  """What a layer multiplies by: its own product, of quantized operands."""

  def __init__(
    self,
    product: Callable[..., Any],
    *,
    attribute: str,
    outputs: tuple[int, ...],
    stored: str | None,
    weight: bit_choice.BitChoice,
    activation: bit_choice.BitChoice,
    signed: bool | None = None,
    watched: bool = False,
  ):
    """Take the place of a product.

    Args:
      product: what the layer called, of two float operands.
      attribute: of the layer, in which it was; see `kinds.ATTRIBUTES`.
      outputs: the axes of the kernel that are features; none for a product of
        two activations.
      stored: the layer's variable that is multiplied just as it is stored, or
        in another type; None where it is changed on the way.
      weight: the choice of bits of the kernel, or of the second activation.
      activation: that of the input.
      signed: whether the input may be negative, where a rule says so; it holds
        for later calibrations too.
      watched: whether to keep `below_zero`, of an input whose codes are
        unsigned though nothing proves that it cannot be negative.
    """
    self.float_product = nnx.static(product)
    self.attribute = attribute
    self.outputs = outputs
    self.stored = stored
    self.weight = weight
    self.activation = activation
    self.signed = signed
    self.below_zero = ShareBelowZero(jnp.zeros(())) if watched else None
    # In training alone: elsewhere a call must change nothing, so that any
    # transformation of JAX may close over a network.
    self.watching = False

  @property
  def has_kernel(self) -> bool:
    """Whether the second operand is a kernel, not an activation."""
    return self.attribute != "operands"

  @promotion.usual()
  def __call__(self, *args: Any, **settings: Any) -> Any:
    """Multiply the quantized operands, or give them for attention."""
    call = layer_kinds.read_call(self.attribute, args, settings)
    if self.watching and self.below_zero is not None:
      share = jnp.mean(call.first < 0, dtype=jnp.float32)
      self.below_zero[...] = jnp.maximum(self.below_zero[...], share)
    if not self.has_kernel:
      return self.activation(call.first), self.weight(call.second)
    product = _mixed_product(
      self._in_order(),
      (_hashable(call.args), _hashable(call.settings)),
      self.activation.quantizer,
      self.weight.quantizer,
      self.outputs,
    )
    choices = (self.activation, self.weight)
    variables = [
      (operand, *choice.learned())
      for operand, choice in zip(
        (call.first, call.second), choices, strict=True
      )
    ]
    return product(variables, [choice.grid[...] for choice in choices])

  def _in_order(self) -> Callable[..., Any]:
    """Give the float product, its operands first."""
    if self.attribute == "einsum_op":
      return _einsum(self.float_product)
    product: Callable[..., Any] = self.float_product
    return product


@functools.cache
def _einsum(operation: Callable[..., Any]) -> Callable[..., Any]:
  def product(first, second, equation, *others, **settings):
    return operation(equation, first, second, *others, **settings)

  return product


class KernelLayer(NamedTuple):
  """A quantized layer that multiplies by a variable as it is stored."""

  kernel: Any  # the variable
  product: QuantizedProduct

  def kernel_matrix(self) -> jax.Array:
    """Give the kernel as [summed, channels]."""
    return layer_kinds.to_matrix(self.kernel[...], self.product.outputs)


def kernel_layers(model: nnx.Module) -> dict[str, KernelLayer]:
  """Find the layers that multiply by what they store, by path, in tree order.

  A variable that several layers share is given once.
  """
  found = {}
  seen: set[int] = set()
  for path, layer in _holders(model).items():
    product = product_of(layer)
    if product.stored is None:
      continue
    kernel = getattr(layer, product.stored)
    if id(kernel) not in seen:
      seen.add(id(kernel))
      found[path] = KernelLayer(kernel, product)
  return found


def product_of(layer: Any) -> QuantizedProduct:
  """Give the product of a quantized layer."""
  product: QuantizedProduct = getattr(layer, _attribute(layer))
  return product


def _attribute(layer: Any) -> str:
  return next(
    name
    for name in layer_kinds.ATTRIBUTES
    if isinstance(vars(layer).get(name), QuantizedProduct)
  )


def _holders(model: nnx.Module) -> dict[str, Any]:
  return {
    program.path_name(path): module
    for path, module in nnx.iter_modules(model)
    if any(
      isinstance(vars(module).get(name), QuantizedProduct)
      for name in layer_kinds.ATTRIBUTES
    )
  }


def quantized_layers(model: nnx.Module) -> dict[str, QuantizedProduct]:
  """Find the quantized products of a network by layer, in tree order."""
  return {path: product_of(layer) for path, layer in _holders(model).items()}


def make_float(model: nnx.Module) -> None:
  """Let every quantized layer call its float product again, in place."""
  for layer in _holders(model).values():
    attribute = _attribute(layer)
    product = getattr(layer, attribute).float_product
    if attribute == "operands":
      delattr(layer, attribute)
    else:
      setattr(layer, attribute, nnx.static(product))


def start_watching(model: nnx.Module) -> None:
  """Let unsigned inputs be watched for values below zero, in place."""
  for product in quantized_layers(model).values():
    product.watching = product.below_zero is not None


def stop_watching(model: nnx.Module) -> None:
  """End it, in place, and log which inputs had values that were clipped."""
  for path, product in quantized_layers(model).items():
    product.watching = False
    watched = product.below_zero
    share = 0.0 if watched is None else float(watched[...])
    if share > 0:
      logging.warning(
        "layer %r: up to %.3g %% of the values that it reads in a batch are"
        " below zero and are clipped there: no value of the example was;"
        " Rule(%r, signed=True), or an example that shows them, keeps them",
        path,
        100 * share,
        path,
      )
