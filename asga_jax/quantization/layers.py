"""Convolutions and linear layers whose operands have a choice of bits.

A quantized layer is a Flax layer, parameters and paths included; only the
product that it calls is another one.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from asga_jax import outline, tracing
from asga_jax.quantization import bit_choice


def _take_over(new: nnx.Module, layer: nnx.Module, product: str) -> None:
  """Hand a layer's attributes, variables included, to its successor."""
  for name, value in vars(layer).items():
    if not name.startswith("_") and name != product:
      setattr(new, name, value)


@functools.lru_cache(maxsize=1024)
def _mixed_product(
  product: Callable[..., jax.Array],
  settings: tuple[Any, Any],
  activation: bit_choice.Form,
  weight: bit_choice.Form,
) -> Callable[..., jax.Array]:
  """Make the product of two mixed operands, one function for equal layers."""
  args, kwargs = settings

  def function(variables, constants):
    (x, x_parameter, x_weights), (w, w_parameter, w_weights) = variables
    x_grids, w_grids = constants
    return product(
      bit_choice.mix(activation, x, x_parameter, x_weights, x_grids),
      bit_choice.mix(weight, w, w_parameter, w_weights, w_grids),
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


def _quantized_product(
  layer: "QuantConv | QuantLinear", inputs, kernel, args, kwargs
):
  per_image = math.prod(inputs.shape[1:])
  shared = kernel.size
  if layer.weight.quantizer.per_channel:
    shared //= kernel.shape[-1]
  choices = (layer.activation, layer.weight)
  product = _mixed_product(
    layer.product,
    (_hashable(args), _hashable(kwargs)),
    bit_choice.Form(layer.activation.quantizer, per_image),
    bit_choice.Form(layer.weight.quantizer, shared),
  )
  variables = [
    (operand, choice.parameter[...], choice.probabilities())
    for operand, choice in zip((inputs, kernel), choices, strict=True)
  ]
  return product(variables, [choice.grids() for choice in choices])


class QuantConv(nnx.Conv):
  """A convolution with a choice of bits for its input and its kernel."""

  product: Callable[..., jax.Array]

  def __init__(
    self,
    layer: nnx.Conv,
    *,
    weight: bit_choice.BitChoice,
    activation: bit_choice.BitChoice,
  ):
    """Take over a convolution: its variables, strides, groups and lowering."""
    _take_over(self, layer, "conv_general_dilated")
    self.product = layer.conv_general_dilated
    self.weight = weight
    self.activation = activation

  def conv_general_dilated(self, inputs, kernel, *args: Any, **kwargs: Any):
    """Convolve the quantized input with the quantized kernel."""
    return _quantized_product(self, inputs, kernel, args, kwargs)


class QuantLinear(nnx.Linear):
  """A linear layer with a choice of bits for its input and its kernel."""

  product: Callable[..., jax.Array]

  def __init__(
    self,
    layer: nnx.Linear,
    *,
    weight: bit_choice.BitChoice,
    activation: bit_choice.BitChoice,
  ):
    """Take over a linear layer: its variables and its product."""
    _take_over(self, layer, "dot_general")
    self.product = layer.dot_general
    self.weight = weight
    self.activation = activation

  def dot_general(self, inputs, kernel, *args: Any, **kwargs: Any):
    """Multiply the quantized input by the quantized kernel."""
    return _quantized_product(self, inputs, kernel, args, kwargs)


QuantLayer = QuantConv | QuantLinear


def quantize_layer(
  layer: nnx.Module,
  weight: bit_choice.BitChoice,
  activation: bit_choice.BitChoice,
) -> QuantLayer:
  """Make the quantized form of a layer, which shares its variables.

  Args:
    layer: an `nnx.Conv` or `nnx.Linear`.
    weight: the choice of the kernel's bits.
    activation: the choice of the input's bits.

  Returns:
    The quantized layer.

  Raises:
    TypeError: another kind of layer, or one with a `__call__` of its own.
  """
  call = type(layer).__call__
  if isinstance(layer, nnx.Conv) and call is nnx.Conv.__call__:
    return QuantConv(layer, weight=weight, activation=activation)
  if isinstance(layer, nnx.Linear) and call is nnx.Linear.__call__:
    return QuantLinear(layer, weight=weight, activation=activation)
  raise TypeError(
    f"cannot quantize a {type(layer).__name__}; expected nnx.Conv or "
    "nnx.Linear, or a subclass that is called in the same way."
  )


def make_float(layer: QuantLayer) -> None:
  """Let a quantized layer call its float product again, in place."""
  attribute = tracing.product_attribute(layer)
  assert attribute is not None
  setattr(layer, attribute, layer.product)


def quantized_layers(model: nnx.Module) -> dict[str, QuantLayer]:
  """Find the quantized layers of a network by path, in tree order."""
  return {
    tracing.path_name(path): module
    for path, module in nnx.iter_modules(model)
    if isinstance(module, QuantConv | QuantLinear)
  }
