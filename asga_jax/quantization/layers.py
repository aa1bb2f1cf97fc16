"""Layers whose operands have a choice of bits.

A quantized layer is a Flax layer, parameters and paths included; only the
product that it calls is another one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from asga_jax.network import attention
from asga_jax.network import calls as tracing
from asga_jax.network import kinds as layer_kinds
from asga_jax.quantization import bit_choice, quantizers
from asga_jax.xla import outline


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

  def function(variables, constants):
    (x, x_parameter, x_weights), (w, w_parameter, w_weights) = variables
    x_grids, w_grids = constants
    return product(
      bit_choice.mix(activation, x, x_parameter, x_weights, x_grids),
      mix_kernel(w, w_parameter, w_weights, w_grids),
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


class _Quantized:
  """What all quantized layers share; the product is the float layer's."""

  product: Callable[..., Any]
  weight: bit_choice.BitChoice
  activation: bit_choice.BitChoice
  kernel: Any

  def __init__(
    self,
    layer: Any,
    *,
    weight: bit_choice.BitChoice,
    activation: bit_choice.BitChoice,
  ):
    """Take over a layer: its variables, its settings and its product."""
    kind = layer_kinds.kind_of(layer)
    assert kind is not None
    layer_kinds.take_over(self, layer, kind.attribute)  # type: ignore[arg-type]
    self.product = layer_kinds.get_product(layer, kind)
    self.outputs = kind.output_axes(layer)
    self.weight = weight
    self.activation = activation

  def kernel_matrix(self) -> jax.Array:
    """Give the kernel as [summed, channels]."""
    return layer_kinds.to_matrix(self.kernel[...], self.outputs)

  def quantized_product(self, inputs, kernel, *args: Any, **kwargs: Any):
    """Multiply the quantized input by the quantized kernel."""
    choices = (self.activation, self.weight)
    product = _mixed_product(
      self.product,
      (_hashable(args), _hashable(kwargs)),
      self.activation.quantizer,
      self.weight.quantizer,
      self.outputs,
    )
    variables = [
      (operand, choice.parameter[...], choice.probabilities())
      for operand, choice in zip((inputs, kernel), choices, strict=True)
    ]
    return product(variables, [choice.grid[...] for choice in choices])


class QuantConv(_Quantized, nnx.Conv):
  """A convolution with a choice of bits for its input and its kernel."""

  def conv_general_dilated(self, inputs, kernel, *args: Any, **kwargs: Any):
    """Convolve the quantized input with the quantized kernel."""
    return self.quantized_product(inputs, kernel, *args, **kwargs)


class QuantConvTranspose(_Quantized, layer_kinds.ConvTranspose):
  """A transposed convolution with such a choice."""

  def conv_transpose(self, inputs, kernel):
    """Convolve the quantized input with the quantized kernel."""
    return self.quantized_product(inputs, kernel)


class QuantLinear(_Quantized, nnx.Linear):
  """A linear layer with such a choice."""

  def dot_general(self, inputs, kernel, *args: Any, **kwargs: Any):
    """Multiply the quantized input by the quantized kernel."""
    return self.quantized_product(inputs, kernel, *args, **kwargs)


class QuantLinearGeneral(_Quantized, nnx.LinearGeneral):
  """A linear layer over several axes with such a choice."""

  def dot_general(self, inputs, kernel, *args: Any, **kwargs: Any):
    """Multiply the quantized input by the quantized kernel."""
    return self.quantized_product(inputs, kernel, *args, **kwargs)


class QuantEinsum(_Quantized, nnx.Einsum):
  """An einsum that is a projection, with such a choice."""

  def einsum_op(self, equation, inputs, kernel, **kwargs: Any):
    """Multiply the quantized input by the quantized kernel."""
    return self.quantized_product(inputs, kernel, equation, **kwargs)


class QuantProduct(attention.Product):
  """A product of two activations with a choice of bits for each."""

  def __init__(
    self,
    product: attention.Product,
    *,
    weight: bit_choice.BitChoice,
    activation: bit_choice.BitChoice,
  ):
    """Take over a product; `weight` is the choice of the second operand."""
    super().__init__(product.free_axis)
    self.product: Callable[..., Any] = product.operands
    self.weight = weight
    self.activation = activation

  def operands(
    self, first: jax.Array, second: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Quantize both operands."""
    return self.activation(first), self.weight(second)


KernelLayer = (
  QuantConv
  | QuantConvTranspose
  | QuantLinear
  | QuantLinearGeneral
  | QuantEinsum
)
QuantLayer = KernelLayer | QuantProduct
_QUANTIZED: dict[type[nnx.Module], Any] = {
  nnx.Conv: QuantConv,
  nnx.ConvTranspose: QuantConvTranspose,
  nnx.Linear: QuantLinear,
  nnx.LinearGeneral: QuantLinearGeneral,
  nnx.Einsum: QuantEinsum,
  attention.Product: QuantProduct,
}


def quantize_layer(
  layer: nnx.Module,
  weight: bit_choice.BitChoice,
  activation: bit_choice.BitChoice,
) -> QuantLayer:
  """Make the quantized form of a layer, which shares its variables.

  Args:
    layer: of one of `layer_kinds.KINDS`.
    weight: the choice of the kernel's bits.
    activation: the choice of the input's bits.

  Returns:
    The quantized layer.

  Raises:
    TypeError: another kind of layer, or one with a `__call__` of its own.
  """
  if type(layer) is nnx.ConvTranspose:
    layer = layer_kinds.ConvTranspose(layer)
  kind = layer_kinds.kind_of(layer)
  kinds = (*layer_kinds.KINDS, layer_kinds.PRODUCT)
  known: list[Any] = [found.layer.__call__ for found in kinds]
  known.append(layer_kinds.ConvTranspose.__call__)
  if kind is None or type(layer).__call__ not in known:
    raise TypeError(
      f"cannot quantize a {type(layer).__name__}; expected one of "
      f"{layer_kinds.NAMES}, or a subclass that is called in the same way."
    )
  return _QUANTIZED[kind.layer](layer, weight=weight, activation=activation)


def make_float(layer: QuantLayer) -> None:
  """Let a quantized layer call its float product again, in place."""
  kind = layer_kinds.kind_of(layer)
  assert kind is not None
  layer_kinds.set_product(layer, kind, layer.product)


def kernel_layers(model: nnx.Module) -> dict[str, KernelLayer]:
  """Find the quantized layers that have a kernel, by path, in tree order."""
  return {
    path: layer
    for path, layer in quantized_layers(model).items()
    if isinstance(layer, KernelLayer)
  }


def quantized_layers(model: nnx.Module) -> dict[str, QuantLayer]:
  """Find the quantized layers of a network by path, in tree order."""
  return {
    tracing.path_name(path): module
    for path, module in nnx.iter_modules(model)
    if isinstance(module, QuantLayer)
  }
