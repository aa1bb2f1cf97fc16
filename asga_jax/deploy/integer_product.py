"""A product that adds up integers exactly, in the place of a layer's own."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.deploy import folding, integer
from asga_jax.network import kinds
from asga_jax.quantization import layers
from asga_jax.xla import promotion


class Accumulation(NamedTuple):
  """One product: the codes of the input and the sums, both int32."""

  path: str
  # Of a product of two activations, those of its second operand after them.
  codes: tuple[jax.Array, ...]
  accumulator: jax.Array


class IntegerProduct(nnx.Module):
  """Multiplies codes by the integers of a kernel, then by the steps."""

  def __init__(
    self,
    product: layers.QuantizedProduct,
    layer: integer.IntegerLayer,
    fold: folding.Fold | None,
    arithmetic: str,
    observer: Callable[[Accumulation], None] | None,
  ):
    """Take the place of a product; `fold` is of the norm that follows."""
    self.attribute = product.attribute
    self.float_product = nnx.static(product.float_product)
    self.outputs = product.outputs
    self.path = layer.path
    self.grid = nnx.static(layer.activation)
    self.arithmetic = arithmetic
    self.observer = nnx.static(observer)
    self.integers = nnx.Variable(jnp.asarray(layer.integers))
    multiplier = layer.integer_step.astype(np.float64) * layer.activation.step
    if fold is not None:
      multiplier = fold.multiplier
    # Of steps so small that float32 has no place for their product.
    self.is_tiny = bool(np.min(np.abs(multiplier)) < np.finfo(np.float32).tiny)
    if self.is_tiny:
      multiplier = multiplier * 2.0**64
    offset = None if fold is None else nnx.Variable(jnp.asarray(fold.offset))
    self.offset = offset
    self.multiplier = nnx.Variable(jnp.asarray(multiplier, jnp.float32))

  @promotion.usual()
  def __call__(self, *args: Any, **settings: Any) -> jax.Array:
    """Multiply the input; of the kernel that is handed, codes are known."""
    call = kinds.read_call(self.attribute, args, settings)
    codes = integer.input_codes(self.grid, call.first)
    kernel = self.integers[...]
    if self.arithmetic == "int32":
      result = _multiply_integers(
        self.attribute,
        self.float_product,
        call._replace(
          first=codes.astype(jnp.int32), second=kernel.astype(jnp.int32)
        ),
      )
    else:
      halved = self.arithmetic == "halves"
      parts = integer.halves(kernel) if halved else (kernel,)
      sums = [
        self._in_float(call._replace(first=codes, second=part))
        for part in parts
      ]
      result = functools.reduce(jnp.add, sums)
    if self.observer is not None:
      self.observer(Accumulation(self.path, (codes.astype(jnp.int32),), result))
    steps = _along_output(
      self.attribute, self.outputs, self.multiplier[...], result.ndim, call
    )
    scaled = result.astype(jnp.float32) * steps
    if self.is_tiny:
      scaled = scaled * 2.0**-64
    if self.offset is not None:
      scaled = scaled + self.offset[...]
    return scaled.astype(call.first.dtype)

  def _in_float(self, call: kinds.Call) -> jax.Array:
    """Multiply whole numbers in float32, exactly where sums stay small."""
    product = self.float_product
    settings: dict[str, Any] = {"precision": jax.lax.Precision.HIGHEST}
    if isinstance(product, kinds.TransposedProduct):
      product, settings = dataclasses.replace(product, **settings), {}
    call = call._replace(
      second=call.second.astype(call.first.dtype),
      settings={**call.settings, **settings},
    )
    made = kinds.call_product(product, self.attribute, call)
    return made.astype(jnp.int32)  # type: ignore[no-any-return]


def _multiply_integers(
  attribute: str, product: Any, call: kinds.Call
) -> jax.Array:
  """Add up products of int32 exactly."""
  if isinstance(product, kinds.TransposedProduct):
    product = dataclasses.replace(product, preferred_element_type=jnp.int32)
    return product(call.first, call.second)
  settings = {
    name: value
    for name, value in call.settings.items()
    if name not in ("precision", "preferred_element_type", "out_sharding")
  }
  settings["preferred_element_type"] = jnp.int32
  operations: dict[str, Any] = {
    "conv_general_dilated": jax.lax.conv_general_dilated,
    "dot_general": jax.lax.dot_general,
    "einsum_op": jnp.einsum,
  }
  made = kinds.call_product(
    operations[attribute], attribute, call._replace(settings=settings)
  )
  return made  # type: ignore[no-any-return]


def _along_output(
  attribute: str,
  outputs: tuple[int, ...],
  steps: jax.Array,
  rank: int,
  call: kinds.Call,
) -> jax.Array:
  """Give the steps of a kernel's shape the axes of the output."""
  if steps.ndim < 2:
    return steps
  sizes = [steps.shape[axis] for axis in outputs]
  if attribute == "conv_general_dilated":
    spec = jax.lax.conv_dimension_numbers(
      call.first.shape,
      call.second.shape,
      call.settings.get("dimension_numbers"),
    ).out_spec
    return steps.reshape([-1 if i == spec[1] else 1 for i in range(rank)])
  if attribute != "einsum_op":
    return steps.reshape(sizes)
  operands, _, output = call.args[0].replace(" ", "").partition("->")
  kernel = operands.partition(",")[2]
  free = rank - len(output.replace("...", ""))
  labels = output.replace("...", "." * free)
  order = sorted(outputs, key=lambda axis: labels.index(kernel[axis]))
  moved = steps.reshape(sizes)
  moved = moved.transpose([outputs.index(axis) for axis in order])
  named = {kernel[axis]: steps.shape[axis] for axis in outputs}
  return moved.reshape([named.get(label, 1) for label in labels])
