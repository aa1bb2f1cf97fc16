"""Through which attribute a layer calls its product, and what it multiplies.

Flax's layers, and many that follow them, hold the function of their product in
an attribute. What is put there sees the operands just as they are multiplied,
whatever class, mask or wrapper made them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx

from asga_jax.network import attention

# Attribute -> what a layer that has it is called.
ATTRIBUTES = {
  "conv_general_dilated": "Conv",
  "conv_transpose": "ConvTranspose",
  "dot_general": "Linear",
  "einsum_op": "Einsum",
  "operands": "Product",
}
NAMES = (
  "nnx.Conv, nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.ConvTranspose, or"
  " a layer that calls its product by one of their attributes ("
  + ", ".join(list(ATTRIBUTES)[:-1])
  + ")"
)
Array = TypeVar("Array", jax.Array, np.ndarray)


class Call(NamedTuple):
  """What a product is handed, in one order for all attributes."""

  first: Any  # the input
  second: Any  # the kernel, or another activation
  args: tuple[Any, ...]
  settings: dict[str, Any]


class RefusedError(ValueError):
  """A product that cannot be quantized; the message says why."""


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
    fields = dataclasses.fields(self)
    return jax.lax.conv_transpose(
      inputs, kernel, **{f.name: getattr(self, f.name) for f in fields}
    )


def attribute_of(module: Any) -> str | None:
  """Name the attribute by which a module calls its product, None without one.

  Args:
    module: of a network that `with_products` made; or any, in which transposed
      convolutions are found by their class.
  """
  if isinstance(module, attention.Product):
    return "operands"
  # Names in a dict are the user's.
  held = {} if isinstance(module, nnx.Dict) else vars(module)
  for name in ATTRIBUTES:
    if name in held and (held[name] is None or callable(held[name])):
      return name
  return "conv_transpose" if _can_transpose(module) else None


def _can_transpose(module: Any) -> bool:
  own = type(module).__call__ is nnx.ConvTranspose.__call__
  return isinstance(module, nnx.ConvTranspose) and own


def refusal(module: Any) -> str | None:
  """Say what keeps a module's own settings from being searched, or None."""
  if _can_transpose(module) and module.padding == "CIRCULAR":
    return "its padding is circular"
  if getattr(module, "dot_general_cls", None) is not None:
    return "it makes its product by dot_general_cls"
  return None


def with_products(model: nnx.Module) -> nnx.Module:
  """Copy a network so that every layer calls its product by an attribute.

  `nnx.ConvTranspose` calls `lax` directly. Here it becomes, with its variables
  and all else that it holds, of a class derived from its own.

  Args:
    model: any network; it is not changed.

  Returns:
    The copy, in which Flax's attention shows its products too.
  """
  copy: nnx.Module = nnx.clone(model)
  for _, module in nnx.iter_modules(copy):
    if _can_transpose(module) and refusal(module) is None:
      module.conv_transpose = _transposed(module)  # type: ignore
      module.__class__ = _transposing(type(module))
  return attention.expose_products(copy)


def _transposed(layer: nnx.ConvTranspose) -> TransposedProduct:
  rank = len(layer.kernel_size)

  def each(value: Any) -> tuple[int, ...]:
    if value is None or isinstance(value, int):
      return (value or 1,) * rank
    return tuple(value)

  padding: Any = layer.padding
  if not isinstance(padding, str):
    padding = tuple(
      (pair, pair) if isinstance(pair, int) else tuple(pair)
      for pair in ([padding] * rank if isinstance(padding, int) else padding)
    )
  return TransposedProduct(
    strides=each(layer.strides),
    padding=padding,
    rhs_dilation=each(layer.kernel_dilation),
    transpose_kernel=layer.transpose_kernel,
    precision=layer.precision,
    preferred_element_type=layer.preferred_element_type,
  )


@functools.cache
def _transposing(kind: type[Any]) -> type[Any]:
  return type(kind.__name__, (kind,), {"__call__": _convolve_transposed})


def _convolve_transposed(layer: Any, inputs: jax.Array) -> jax.Array:
  """Map [..., *spatial, in_features] to [..., *spatial, out_features]."""
  spatial = len(layer.kernel_size) + 1
  batch = inputs.shape[: inputs.ndim - spatial]
  kernel = layer.kernel[...]
  if layer.mask is not None:
    kernel = kernel * layer.mask
  bias = layer.bias[...] if layer.bias is not None else None
  inputs, kernel, bias = layer.promote_dtype(
    (inputs, kernel, bias), dtype=layer.dtype
  )
  flat = inputs.reshape(math.prod(batch), *inputs.shape[len(batch) :])
  output = layer.conv_transpose(flat, kernel)
  if bias is not None:
    output = output + bias.reshape((1,) * (output.ndim - 1) + (-1,))
  return output.reshape(*batch, *output.shape[1:])


def get_product(layer: Any, attribute: str) -> Callable[..., Any]:
  """Give what a layer calls; `lax` where it holds None."""
  product = vars(layer).get(attribute)
  if product is not None:
    return product  # type: ignore[no-any-return]
  return attention.both if attribute == "operands" else jax.lax.dot_general


def read_call(
  attribute: str, args: Sequence[Any], settings: dict[str, Any]
) -> Call:
  """Sort the arguments of a product, of which operands may come by name."""
  named = [name for name in ("lhs", "rhs") if name in settings]
  args = [*args, *(settings[name] for name in named)]
  settings = {k: v for k, v in settings.items() if k not in named}
  if attribute == "einsum_op":
    equation, first, second, *others = args
    return Call(first, second, (equation, *others), settings)
  first, second, *others = args
  return Call(first, second, tuple(others), settings)


def call_product(
  product: Callable[..., Any], attribute: str, call: Call
) -> Any:
  """Call a product as its layer does."""
  if attribute == "einsum_op":
    equation, *others = call.args
    return product(equation, call.first, call.second, *others, **call.settings)
  return product(call.first, call.second, *call.args, **call.settings)


def output_axes(attribute: str, product: Any, call: Call) -> tuple[int, ...]:
  """List the axes of the kernel that become features of the output.

  Args:
    attribute: of the layer.
    product: what it calls.
    call: its operands; shapes are enough.

  Returns:
    The axes in order; none for a product of two activations.

  Raises:
    RefusedError: the kernel is not summed over in a way that leaves features.
  """
  rank = len(call.second.shape)
  match attribute:
    case "operands":
      return ()
    case "dot_general":
      numbers = call.settings.get("dimension_numbers") or call.args[0]
      (_, summed), (_, batch) = numbers
      if tuple(batch):
        raise RefusedError(f"it has batch axes {tuple(batch)}")
      return tuple(i for i in range(rank) if i not in summed)
    case "einsum_op":
      return _einsum_outputs(call.args[0])
    case "conv_transpose":
      # Of another function than ours nothing is known but Flax's layout.
      turned = getattr(product, "transpose_kernel", False)
      return (rank - 2,) if turned else (rank - 1,)
  numbers = call.settings.get("dimension_numbers")
  spec = jax.lax.conv_dimension_numbers(
    call.first.shape, call.second.shape, numbers
  ).rhs_spec
  return (spec[0],)


def _einsum_outputs(equation: str) -> tuple[int, ...]:
  inputs, kernel, output = split_equation(equation)
  plain = (
    "." not in kernel
    and all(len(set(part)) == len(part) for part in (inputs, kernel, output))
    # Every axis of the kernel is either summed over or new.
    and all((label in inputs) != (label in output) for label in kernel)
    and set(inputs) - set(kernel) <= set(output)
  )
  if not plain:
    raise RefusedError(f"{equation!r} is no plain projection")
  return tuple(i for i, label in enumerate(kernel) if label in output)


def split_equation(equation: str) -> tuple[str, str, str]:
  """Give the labels of input, kernel and output, without an ellipsis."""
  operands, _, output = equation.replace(" ", "").partition("->")
  inputs, _, kernel = operands.partition(",")
  return inputs.replace("...", ""), kernel, output.replace("...", "")


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
