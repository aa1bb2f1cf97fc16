"""The kinds of Flax layers whose product of input and kernel is understood."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx

from asga_jax.network import attention


class Kind(NamedTuple):
  """How a layer multiplies its input by its kernel."""

  layer: type[nnx.Module]
  # The attribute through which a layer calls its product.
  attribute: str
  # The axes of the kernel that become features of the output.
  output_axes: Callable[[Any], tuple[int, ...]]
  # Why a layer of this kind cannot be searched, None if it can.
  refusal: Callable[[Any], str | None] = lambda layer: None
  # Whether the kernel is applied at every place of the input, not the output.
  scatters: bool = False


class ConvTranspose(nnx.ConvTranspose):
  """A transposed convolution that calls its product through an attribute.

  `nnx.ConvTranspose` calls `lax` directly; otherwise it is the same layer.
  """

  def __init__(self, layer: nnx.ConvTranspose):
    """Take over a layer: its variables and settings."""
    take_over(self, layer)
    rank = len(self.kernel_size)

    def each(value: Any) -> tuple[int, ...]:
      if value is None or isinstance(value, int):
        return (value or 1,) * rank
      return tuple(value)

    padding: Any = self.padding
    if not isinstance(padding, str):
      padding = tuple(
        (pair, pair) if isinstance(pair, int) else tuple(pair)
        for pair in ([padding] * rank if isinstance(padding, int) else padding)
      )
    self.conv_transpose: Any = TransposedProduct(
      strides=each(self.strides),
      padding=padding,
      rhs_dilation=each(self.kernel_dilation),
      transpose_kernel=self.transpose_kernel,
      precision=self.precision,
      preferred_element_type=self.preferred_element_type,
    )

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Map [..., *spatial, in_features] to [..., *spatial, out_features]."""
    spatial = len(self.kernel_size) + 1
    batch = inputs.shape[: inputs.ndim - spatial]
    kernel = self.kernel[...]
    if self.mask is not None:
      kernel = kernel * self.mask
    bias = self.bias[...] if self.bias is not None else None
    inputs, kernel, bias = self.promote_dtype(
      (inputs, kernel, bias), dtype=self.dtype
    )
    flat = inputs.reshape(math.prod(batch), *inputs.shape[len(batch) :])
    output = self.conv_transpose(flat, kernel)
    if bias is not None:
      output = output + bias
    return output.reshape(*batch, *output.shape[1:])


@dataclasses.dataclass(frozen=True)
class TransposedProduct:
  """`lax.conv_transpose` with its settings; two of equal settings are equal."""

  strides: tuple[int, ...]
  padding: Any
  rhs_dilation: tuple[int, ...]
  transpose_kernel: bool
  precision: Any
  preferred_element_type: Any

  def __call__(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Map [N, *spatial, C] by a kernel [*window, C, O]."""
    return jax.lax.conv_transpose(
      inputs, kernel, **{f.name: getattr(self, f.name) for f in FIELDS}
    )


FIELDS = dataclasses.fields(TransposedProduct)


@dataclasses.dataclass(frozen=True)
class EinsumProduct:
  """An einsum with its operands before its equation, as other products."""

  operation: Callable[..., jax.Array]

  def __call__(
    self, inputs: jax.Array, kernel: jax.Array, equation: str, **kwargs: Any
  ) -> jax.Array:
    """Evaluate the equation."""
    return self.operation(equation, inputs, kernel, **kwargs)


def take_over(new: nnx.Module, layer: nnx.Module, *but: str) -> None:
  """Hand a layer's attributes, variables included, to its successor."""
  for name, value in vars(layer).items():
    if not name.startswith("_") and name not in but:
      setattr(new, name, value)


def _general_outputs(layer: nnx.LinearGeneral) -> tuple[int, ...]:
  rank = len(layer.kernel.shape)
  return tuple(range(rank - len(layer.out_features), rank))


def _general_refusal(layer: nnx.LinearGeneral) -> str | None:
  if layer.batch_axis:
    return f"it has batch axes {tuple(layer.batch_axis)}"
  if layer.dot_general_cls is not None:
    return "it makes its product by dot_general_cls"
  return None


def _einsum_outputs(layer: nnx.Einsum) -> tuple[int, ...]:
  _, kernel, output = _equation(layer.einsum_str)
  return tuple(i for i, label in enumerate(kernel) if label in output)


def _equation(equation: str) -> tuple[str, str, str]:
  operands, _, output = equation.replace(" ", "").partition("->")
  inputs, _, kernel = operands.partition(",")
  return inputs.replace("...", ""), kernel, output.replace("...", "")


def _einsum_refusal(layer: nnx.Einsum) -> str | None:
  inputs, kernel, output = _equation(layer.einsum_str)
  plain = (
    "." not in kernel
    and all(len(set(part)) == len(part) for part in (inputs, kernel, output))
    # Every axis of the kernel is either summed over or new.
    and all((label in inputs) != (label in output) for label in kernel)
    and set(inputs) - set(kernel) <= set(output)
  )
  if not plain:
    return f"{layer.einsum_str!r} is no plain projection"
  return None


def _transposed_outputs(layer: nnx.ConvTranspose) -> tuple[int, ...]:
  rank = len(layer.kernel.shape)
  return (rank - 2,) if layer.transpose_kernel else (rank - 1,)


def _transposed_refusal(layer: nnx.ConvTranspose) -> str | None:
  return "its padding is circular" if layer.padding == "CIRCULAR" else None


KINDS = (
  Kind(
    nnx.Conv,
    "conv_general_dilated",
    lambda layer: (len(layer.kernel.shape) - 1,),
  ),
  Kind(nnx.Linear, "dot_general", lambda layer: (1,)),
  Kind(nnx.LinearGeneral, "dot_general", _general_outputs, _general_refusal),
  Kind(nnx.Einsum, "einsum_op", _einsum_outputs, _einsum_refusal),
  Kind(
    nnx.ConvTranspose,
    "conv_transpose",
    _transposed_outputs,
    _transposed_refusal,
    scatters=True,
  ),
)
NAMES = ", ".join(f"nnx.{kind.layer.__name__}" for kind in KINDS)
# Of two activations: what stands for the kernel is not a variable.
PRODUCT = Kind(attention.Product, "operands", lambda layer: ())


def kind_of(module: Any) -> Kind | None:
  """Give the kind of a layer that can be searched, None for another module."""
  for kind in (*KINDS, PRODUCT):
    if isinstance(module, kind.layer):
      return None if kind.refusal(module) else kind
  return None


def refusal(module: Any) -> str | None:
  """Say why a module with a kernel cannot be searched, None if it can.

  A module without a kernel of its own (a container, a norm) gives None too.
  """
  for kind in KINDS:
    if isinstance(module, kind.layer):
      return kind.refusal(module)
  if isinstance(module, nnx.Embed):
    return "it looks rows up instead of multiplying by them"
  shapes = {
    name: value.shape
    for name, value in vars(module).items()
    if isinstance(value, nnx.Param) and len(value.shape) > 1
  }
  if not shapes:
    return None
  return f"its products with {shapes} are its own"


def get_product(layer: Any, kind: Kind) -> Callable[..., Any]:
  """Give a layer's product, of (inputs, kernel, *others)."""
  if kind.layer is nnx.Einsum:
    return EinsumProduct(layer.einsum_op)
  if kind.layer is nnx.LinearGeneral and layer.dot_general is None:
    return jax.lax.dot_general
  return getattr(layer, kind.attribute)


def set_product(layer: Any, kind: Kind, product: Callable[..., Any]) -> None:
  """Let a layer call another product of (inputs, kernel, *others)."""
  if kind.layer is nnx.Einsum:

    def einsum(equation, inputs, kernel, **kwargs):
      return product(inputs, kernel, equation, **kwargs)

    layer.einsum_op = einsum
  else:
    setattr(layer, kind.attribute, product)


Array = TypeVar("Array", jax.Array, np.ndarray)


def to_matrix(kernel: Array, outputs: tuple[int, ...]) -> Array:
  """Move the output axes of a kernel last and fold all into two: [C, O]."""
  summed = tuple(i for i in range(kernel.ndim) if i not in outputs)
  size = math.prod(kernel.shape[i] for i in outputs)
  return kernel.transpose(summed + outputs).reshape(-1, size)


def from_matrix(
  matrix: Array, shape: tuple[int, ...], outputs: tuple[int, ...]
) -> Array:
  """Undo `to_matrix`, given the shape of the kernel."""
  summed = tuple(i for i in range(len(shape)) if i not in outputs)
  order = summed + outputs
  moved = matrix.reshape([shape[i] for i in order])
  return moved.transpose([order.index(i) for i in range(len(shape))])


def count_macs(kind: Kind, layer: Any, call: Any) -> int:
  """Count the multiply-accumulates of one call.

  Args:
    kind: of the layer.
    layer: with its kernel.
    call: `tracing.LayerCall`.

  Returns:
    Kernel elements times the places at which the kernel is applied: those of
    the output, or of the input where the convolution is transposed (borders
    that are cut off count).
  """
  if kind is PRODUCT:
    return attention.count_macs(layer, call.inputs, call.kernel)
  if kind.scatters:
    return math.prod(call.inputs.shape[:-1]) * call.kernel.size
  outputs = [call.kernel.shape[i] for i in kind.output_axes(layer)]
  return call.output.size // math.prod(outputs) * call.kernel.size
