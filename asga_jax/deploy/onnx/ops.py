"""The operations of a jaxpr as nodes of an ONNX graph: a table of functions.

Here those on elements; `onnx_shapes` has those that move and reduce them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

from asga_jax.deploy.onnx import indexing as onnx_indexing
from asga_jax.deploy.onnx import products as onnx_products
from asga_jax.deploy.onnx import shapes as onnx_shapes
from asga_jax.deploy.onnx import windows as onnx_windows
from asga_jax.deploy.onnx.values import (
  Builder,
  Clipped,
  Product,
  Rule,
  Tensor,
  Value,
  Weight,
)


def elementwise(operation: str) -> Rule:
  """Make the rule of an operation on each element, ONNX's of that name."""

  def rule(builder, values, params, aval):
    del params
    name, axes = _broadcast(builder, operation, values)
    return Tensor(name, aval.shape, aval.dtype, axes)

  return rule


def _broadcast(
  builder: Builder, operation: str, values: Sequence[Value], **attributes: Any
) -> tuple[str, tuple[int, ...]]:
  """Add a node of operands that lie in one order of axes."""
  values = [
    value if isinstance(value, np.ndarray) else builder.tensor(value)
    for value in values
  ]
  rank = max(len(value.shape) for value in values)
  axes = next(
    (
      value.axes
      for value in values
      if isinstance(value, Tensor) and len(value.shape) == rank
    ),
    tuple(range(rank)),
  )
  names = [
    builder.ordered(value, axes if len(value.shape) == rank else None)
    for value in values
  ]
  return builder.graph.add(operation, *names, **attributes), axes


def _affine(operation: str) -> Rule:
  """Multiply and add constants into the product before them."""
  plain = elementwise(operation)

  def rule(builder, values, params, aval):
    left, right = values
    if operation in ("Add", "Mul") and isinstance(right, Product):
      left, right = right, left
    if isinstance(left, Product) and len(aval.shape) == len(left.shape):
      vector = left.vector(right)
      if vector is not None:
        return {
          "Add": lambda: left.affine(1, vector),
          "Sub": lambda: left.affine(1, -vector),
          "Mul": lambda: left.affine(vector, 0),
          "Div": lambda: left.affine(1 / vector, 0),
        }[operation]()
    return plain(builder, values, params, aval)

  return rule


def _negative(builder, values, params, aval):
  if isinstance(values[0], Product):
    return values[0].affine(-1, 0)
  return elementwise("Neg")(builder, values, params, aval)


def _bound(operation: str) -> Rule:
  """Remember a constant bound until it is known who reads the result."""
  plain = elementwise(operation)

  def rule(builder, values, params, aval):
    value, bound = values
    if isinstance(value, np.ndarray):
      value, bound = bound, value
    if (
      isinstance(bound, np.ndarray)
      and bound.size == 1
      and bound.ndim in (0, len(value.shape))
      and aval.dtype == np.float32
    ):
      number = float(bound.reshape(()))
      low, high = (number, np.inf) if operation == "Max" else (-np.inf, number)
      return _clip(builder, value, low, high)
    return plain(builder, values, params, aval)

  return rule


def _clip(builder: Builder, value: Value, low: float, high: float) -> Value:
  if isinstance(value, Weight | np.ndarray):
    value = builder.tensor(value)
  if not isinstance(value, Clipped):
    return Clipped(value, low, high)
  bounds = [min(max(bound, low), high) for bound in (value.low, value.high)]
  return Clipped(value.base, *bounds)


def _clamp(builder, values, params, aval):
  low, value, high = values
  if all(isinstance(bound, np.ndarray) for bound in (low, high)) and (
    aval.dtype == np.float32 and low.size == high.size == 1
  ):
    return _clip(builder, value, float(low.item()), float(high.item()))
  name, axes = _broadcast(builder, "Max", [value, low])
  bounded = Tensor(name, aval.shape, aval.dtype, axes)
  return elementwise("Min")(builder, [bounded, high], params, aval)


def _composed(*operations: str) -> Rule:
  """Apply operations on each element one after another."""

  def rule(builder, values, params, aval):
    for operation in operations:
      values = [elementwise(operation)(builder, values, params, aval)]
    return values[0]

  return rule


def _erfc(builder, values, params, aval):
  inner = elementwise("Erf")(builder, values, params, aval)
  one = np.ones((), aval.dtype)
  return elementwise("Sub")(builder, [one, inner], params, aval)


def _log1p(builder, values, params, aval):
  one = np.ones((), aval.dtype)
  inner = elementwise("Add")(builder, [values[0], one], params, aval)
  return elementwise("Log")(builder, [inner], params, aval)


def _expm1(builder, values, params, aval):
  power = elementwise("Exp")(builder, values, params, aval)
  one = np.ones((), aval.dtype)
  return elementwise("Sub")(builder, [power, one], params, aval)


def _exp2(builder, values, params, aval):
  two = np.full((), 2, aval.dtype)
  return elementwise("Pow")(builder, [two, values[0]], params, aval)


def _integer_power(builder, values, params, aval):
  if params["y"] == 2:
    return elementwise("Mul")(builder, [values[0]] * 2, params, aval)
  exponent = np.full((), params["y"], aval.dtype)
  return elementwise("Pow")(builder, [values[0], exponent], params, aval)


def _square(builder, values, params, aval):
  return elementwise("Mul")(builder, [values[0]] * 2, params, aval)


def _select(builder, values, params, aval):
  which, *cases = values
  # `which` may be one truth for all.
  return elementwise("Where")(builder, [which, *cases[::-1]], params, aval)


def _dtype(value: Value) -> np.dtype:
  return np.dtype(np.float32) if isinstance(value, Weight) else value.dtype


def _not_equal(builder, values, params, aval):
  equal = elementwise("Equal")(builder, values, params, aval)
  return elementwise("Not")(builder, [equal], params, aval)


def _convert(builder, values, params, aval):
  del params
  (value,) = values
  if _dtype(value) == aval.dtype:
    return value
  kind = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
  name, axes = _broadcast(builder, "Cast", [value], to=kind)
  return Tensor(name, aval.shape, aval.dtype, axes)


def _same(builder, values, params, aval):
  del builder, params, aval
  return values[0]


def _bitwise(operation: str) -> Rule:
  """Make the rule of truths, and of the bits of whole numbers."""

  def rule(builder, values, params, aval):
    kind = "" if aval.dtype == np.bool_ else "Bitwise"
    return elementwise(kind + operation)(builder, values, params, aval)

  return rule


def _remainder(builder, values, params, aval):
  del params
  name, axes = _broadcast(builder, "Mod", values, fmod=1)
  return Tensor(name, aval.shape, aval.dtype, axes)


_ELEMENTWISE = {
  "abs": "Abs",
  "acos": "Acos",
  "acosh": "Acosh",
  "asin": "Asin",
  "asinh": "Asinh",
  "atan": "Atan",
  "atanh": "Atanh",
  "ceil": "Ceil",
  "cos": "Cos",
  "cosh": "Cosh",
  "eq": "Equal",
  "erf": "Erf",
  "exp": "Exp",
  "floor": "Floor",
  "ge": "GreaterOrEqual",
  "gt": "Greater",
  "le": "LessOrEqual",
  "log": "Log",
  "logistic": "Sigmoid",
  "lt": "Less",
  "pow": "Pow",
  "round": "Round",
  "sign": "Sign",
  "sin": "Sin",
  "sinh": "Sinh",
  "sqrt": "Sqrt",
  "tan": "Tan",
  "tanh": "Tanh",
}


def _batch_size(builder, values, params, aval):
  del values
  sizes = builder.sizes([params["dim"]])
  kind = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
  size = builder.graph.add("Cast", builder.reshape(sizes, []), to=kind)
  return builder.plain(size, aval.shape, aval.dtype)


RULES: dict[str, Rule] = {
  **onnx_indexing.RULES,
  **onnx_shapes.RULES,
  **onnx_windows.RULES,
  **{name: elementwise(found) for name, found in _ELEMENTWISE.items()},
  "add": _affine("Add"),
  "add_any": _affine("Add"),
  "and": _bitwise("And"),
  "clamp": _clamp,
  "conv_general_dilated": onnx_products.convolution,
  "convert_element_type": _convert,
  "copy": _same,
  "dim_as_value": _batch_size,
  "div": _affine("Div"),
  "dot_general": onnx_products.matrix_product,
  "erfc": _erfc,
  "exp2": _exp2,
  "expm1": _expm1,
  "integer_pow": _integer_power,
  "log1p": _log1p,
  "max": _bound("Max"),
  "min": _bound("Min"),
  "mul": _affine("Mul"),
  "ne": _not_equal,
  "neg": _negative,
  "not": _bitwise("Not"),
  "optimization_barrier": _same,
  "or": _bitwise("Or"),
  "rem": _remainder,
  "rsqrt": _composed("Sqrt", "Reciprocal"),
  "select_n": _select,
  "sharding_constraint": _same,
  "square": _square,
  "stop_gradient": _same,
  "sub": _affine("Sub"),
  "xor": _bitwise("Xor"),
}

# Operations that only move the elements of a constant, steps and codes alike.
MOVES = frozenset(["copy", "reshape", "rev", "slice", "squeeze", "transpose"])


def apply_to_weight(weight: Weight, equation: Any) -> Weight:
  """Move the elements of a quantized constant."""
  return weight.map(
    lambda array: equation.primitive.bind(
      np.asarray(array, np.float32), **equation.params
    )
  )


def unclipped(value: Value) -> tuple[Value, float, float]:
  """Give what a value was before it was clipped, and its bounds."""
  if isinstance(value, Clipped):
    return value.base, value.low, value.high
  return value, -np.inf, np.inf
