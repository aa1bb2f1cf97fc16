"""The operations of a jaxpr as nodes of an ONNX graph: a table of functions."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jax import lax
from onnx import helper

from asga_jax.deploy import onnx_products
from asga_jax.deploy.onnx_values import (
  Builder,
  Clipped,
  ExportError,
  Product,
  Tensor,
  Value,
  Weight,
)

# Of (builder, inputs, parameters, what is known of the output).
Rule: TypeAlias = Callable[[Builder, Sequence[Value], Any, Any], Value]


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
  if len(cases) != 2 or _dtype(which) != np.bool_:
    raise ExportError(f"it selects from {len(cases)} cases")
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


def _round(builder, values, params, aval):
  if params["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
    raise ExportError("it rounds halves away from zero")
  return elementwise("Round")(builder, values, params, aval)


def _same(builder, values, params, aval):
  del builder, params, aval
  return values[0]


def _broadcast_in_dim(builder, values, params, aval):
  (value,) = values[:1]
  target = params["broadcast_dimensions"]
  name = builder.ordered(value)
  added = [i for i in range(len(aval.shape)) if i not in target]
  if added:
    axes = builder.graph.constant(added, np.int64)
    name = builder.graph.add("Unsqueeze", name, axes)
  sizes: list[Any] = list(aval.shape)
  for size, axis in zip(value.shape, target, strict=True):
    if size == sizes[axis]:
      sizes[axis] = 1
  if any(not isinstance(size, int) or size != 1 for size in sizes):
    name = builder.graph.add("Expand", name, builder.sizes(sizes))
  return builder.plain(name, aval.shape, aval.dtype)


def _reshape(builder, values, params, aval):
  del params
  name = builder.reshape(builder.ordered(values[0]), aval.shape)
  return builder.plain(name, aval.shape, aval.dtype)


def _transpose(builder, values, params, aval):
  tensor = builder.tensor(values[0])
  order = params["permutation"]
  axes = tuple(order.index(axis) for axis in tensor.axes)
  return Tensor(tensor.name, aval.shape, aval.dtype, axes)


def _squeeze(builder, values, params, aval):
  axes = builder.graph.constant(params["dimensions"], np.int64)
  name = builder.graph.add("Squeeze", builder.ordered(values[0]), axes)
  return builder.plain(name, aval.shape, aval.dtype)


def _reduce(operation: str) -> Rule:
  def rule(builder, values, params, aval):
    tensor = builder.tensor(values[0])
    gone = [tensor.axes.index(axis) for axis in params["axes"]]
    name = builder.graph.add(
      operation,
      tensor.name,
      builder.graph.constant(sorted(gone), np.int64),
      keepdims=0,
    )
    kept = [axis for axis in tensor.axes if axis not in params["axes"]]
    ranks = sorted(kept)
    axes = tuple(ranks.index(axis) for axis in kept)
    return Tensor(name, aval.shape, aval.dtype, axes)

  return rule


def _arg(operation: str) -> Rule:
  def rule(builder, values, params, aval):
    (axis,) = params["axes"]
    name = builder.ordered(values[0])
    found = builder.graph.add(operation, name, axis=axis, keepdims=0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
    found = builder.graph.add("Cast", found, to=kind)
    return builder.plain(found, aval.shape, aval.dtype)

  return rule


def _pool(operation: str) -> Rule:
  """Build a maximum or a sum over windows; ONNX pools after two axes."""

  def rule(builder, values, params, aval):
    window = params["window_dimensions"]
    if any(d != 1 for d in params["base_dilation"]):
      raise ExportError("it is dilated at its input")
    # All strides and pads of the other two axes must be trivial.
    trivial = [
      axis
      for axis, (size, stride, pads) in enumerate(
        zip(window, params["window_strides"], params["padding"], strict=True)
      )
      if (size, stride, *pads) == (1, 1, 0, 0)
    ]
    if len(trivial) < 2:
      raise ExportError(f"its window is {tuple(window)}")
    outer = [trivial[0], trivial[-1]]
    places = [axis for axis in range(len(window)) if axis not in outer]
    if not places:
      return values[0]
    axes = (*outer, *places)
    pads = [params["padding"][axis] for axis in places]
    settings: dict[str, Any] = {
      "kernel_shape": [window[axis] for axis in places],
      "strides": [params["window_strides"][axis] for axis in places],
      "dilations": [params["window_dilation"][axis] for axis in places],
      "pads": [int(p[side]) for side in (0, 1) for p in pads],
    }
    if operation == "AveragePool":
      settings["count_include_pad"] = 1
    name = builder.ordered(values[0], axes)
    name = builder.graph.add(operation, name, **settings)
    if operation == "AveragePool":
      count = builder.graph.constant(np.prod(window), aval.dtype)
      name = builder.graph.add("Mul", name, count)
    return Tensor(name, aval.shape, aval.dtype, axes)

  return rule


def _concatenate(builder, values, params, aval):
  names = [builder.ordered(value) for value in values]
  name = builder.graph.add("Concat", *names, axis=params["dimension"])
  return builder.plain(name, aval.shape, aval.dtype)


def _stack(builder, values, params, aval):
  axis = builder.graph.constant([params["axis"]], np.int64)
  names = [
    builder.graph.add("Unsqueeze", builder.ordered(value), axis)
    for value in values
  ]
  name = builder.graph.add("Concat", *names, axis=params["axis"])
  return builder.plain(name, aval.shape, aval.dtype)


def _slice(builder, values, params, aval):
  starts, ends = params["start_indices"], params["limit_indices"]
  steps = params["strides"] or (1,) * len(starts)
  cut = [
    (start, end, axis, step)
    for axis, (start, end, step) in enumerate(
      zip(starts, ends, steps, strict=True)
    )
    if (start, step) != (0, 1) or end != values[0].shape[axis]
  ]
  if not all(isinstance(n, int) for row in cut for n in row):
    raise ExportError("it cuts the batch")
  name = builder.ordered(values[0])
  if cut:
    bounds = [
      builder.graph.constant(column, np.int64)
      for column in zip(*cut, strict=True)
    ]
    name = builder.graph.add("Slice", name, *bounds)
  return builder.plain(name, aval.shape, aval.dtype)


def _cut(builder, values, params, aval):
  operand, *starts = values
  sizes = params["slice_sizes"]
  if not all(isinstance(start, np.ndarray) for start in starts):
    raise ExportError("where it begins is computed from the input")
  clamped = [
    0 if size == whole else int(np.clip(start, 0, whole - size))
    for start, size, whole in zip(starts, sizes, operand.shape, strict=True)
  ]
  ends = [s + size for s, size in zip(clamped, sizes, strict=True)]
  fixed = {"start_indices": clamped, "limit_indices": ends, "strides": None}
  return _slice(builder, [operand], fixed, aval)


def _gather(builder, values, params, aval):
  """Build what indexing by fixed numbers makes, a slice at a known place."""
  operand, indices = values
  numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
  if not isinstance(indices, np.ndarray) or indices.ndim != 1:
    raise ExportError("what it picks is computed from the input, or several")
  if numbers.operand_batching_dims:
    raise ExportError("it picks along several axes at once")
  starts: list[np.ndarray] = [np.zeros((), np.int64)] * len(operand.shape)
  for axis, start in zip(numbers.start_index_map, indices, strict=True):
    starts[axis] = np.asarray(start)
  fixed = {"slice_sizes": sizes}
  whole = aval.update(shape=tuple(sizes))
  cut = _cut(builder, [operand, *starts], fixed, whole)
  gone = {"dimensions": numbers.collapsed_slice_dims}
  return _squeeze(builder, [cut], gone, aval) if gone["dimensions"] else cut


def _reverse(builder, values, params, aval):
  axes = list(params["dimensions"])
  constant = builder.graph.constant
  name = builder.graph.add(
    "Slice",
    builder.ordered(values[0]),
    constant([-1] * len(axes), np.int64),
    constant([np.iinfo(np.int64).min] * len(axes), np.int64),
    constant(axes, np.int64),
    constant([-1] * len(axes), np.int64),
  )
  return builder.plain(name, aval.shape, aval.dtype)


def _pad(builder, values, params, aval):
  config = params["padding_config"]
  if any(low < 0 or high < 0 or inner for low, high, inner in config):
    raise ExportError(f"its padding is {config}")
  pads = [int(row[side]) for side in (0, 1) for row in config]
  name = builder.graph.add(
    "Pad",
    builder.ordered(values[0]),
    builder.graph.constant(pads, np.int64),
    builder.ordered(values[1]),
  )
  return builder.plain(name, aval.shape, aval.dtype)


_ELEMENTWISE = {
  "abs": "Abs",
  "and": "And",
  "ceil": "Ceil",
  "cos": "Cos",
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
  "not": "Not",
  "or": "Or",
  "pow": "Pow",
  "sign": "Sign",
  "sin": "Sin",
  "sqrt": "Sqrt",
  "tanh": "Tanh",
}

RULES: dict[str, Rule] = {
  **{name: elementwise(found) for name, found in _ELEMENTWISE.items()},
  "add": _affine("Add"),
  "argmax": _arg("ArgMax"),
  "argmin": _arg("ArgMin"),
  "broadcast_in_dim": _broadcast_in_dim,
  "clamp": _clamp,
  "concatenate": _concatenate,
  "conv_general_dilated": onnx_products.convolution,
  "convert_element_type": _convert,
  "copy": _same,
  "div": _affine("Div"),
  "dot_general": onnx_products.matrix_product,
  "erfc": _erfc,
  "exp2": _exp2,
  "expm1": _expm1,
  "gather": _gather,
  "integer_pow": _integer_power,
  "log1p": _log1p,
  "max": _bound("Max"),
  "min": _bound("Min"),
  "mul": _affine("Mul"),
  "ne": _not_equal,
  "neg": _negative,
  "optimization_barrier": _same,
  "pad": _pad,
  "reduce_max": _reduce("ReduceMax"),
  "reduce_min": _reduce("ReduceMin"),
  "reduce_prod": _reduce("ReduceProd"),
  "reduce_sum": _reduce("ReduceSum"),
  "reduce_window_max": _pool("MaxPool"),
  "reduce_window_sum": _pool("AveragePool"),
  "reshape": _reshape,
  "rev": _reverse,
  "rsqrt": _composed("Sqrt", "Reciprocal"),
  "select_n": _select,
  "slice": _slice,
  "square": _square,
  "squeeze": _squeeze,
  "round": _round,
  "stack": _stack,
  "stop_gradient": _same,
  "sub": _affine("Sub"),
  "transpose": _transpose,
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


def split(
  builder: Builder, value: Value, params: Any, avals: Sequence[Any]
) -> list[Value]:
  """Cut a tensor into parts along an axis."""
  axis, start = params["axis"], 0
  parts = []
  for aval in avals:
    starts: list[int] = [0] * len(aval.shape)
    ends = list(value.shape)
    starts[axis], ends[axis] = start, start + aval.shape[axis]
    fixed = {"start_indices": starts, "limit_indices": ends, "strides": None}
    parts.append(_slice(builder, [value], fixed, aval))
    start = ends[axis]
  return parts


def unclipped(value: Value) -> tuple[Value, float, float]:
  """Give what a value was before it was clipped, and its bounds."""
  if isinstance(value, Clipped):
    return value.base, value.low, value.high
  return value, -np.inf, np.inf
