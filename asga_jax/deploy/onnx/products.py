"""Convolutions and matrix products of a jaxpr as nodes of an ONNX graph."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from asga_jax.deploy.onnx import shapes as onnx_shapes
from asga_jax.deploy.onnx import values as onnx_values
from asga_jax.deploy.onnx.values import (
  Builder,
  ExportError,
  Product,
  Tensor,
  Value,
  Weight,
)


def is_constant(value: Value) -> bool:
  """Whether a value is known as the network is read."""
  return isinstance(value, np.ndarray | Weight)


def _rearranged(value: Value, order: Sequence[int]) -> Value:
  """Transpose a constant."""
  if isinstance(value, Weight):
    return value.map(lambda array: array.transpose(order))
  assert isinstance(value, np.ndarray)
  return value.transpose(order)


def _operand(
  builder: Builder, kernel: Value, axis: int, scale: np.ndarray
) -> str:
  """Build a constant whose indices along an axis are multiplied."""
  if isinstance(kernel, Weight):
    return builder.weight(kernel, axis, scale)
  assert isinstance(kernel, np.ndarray)
  shape = [1] * kernel.ndim
  shape[axis] = -1
  scaled = kernel.astype(np.float64) * scale.reshape(shape)
  return builder.graph.constant(scaled, kernel.dtype, "kernel")


def _later(
  builder: Builder,
  kernel: Value,
  axis: int,
  build: Any,
  aval: Any,
  channel_axis: int,
) -> Value:
  """Leave a product open to what is multiplied and added after it."""
  size = kernel.shape[axis]
  scope = builder.graph.scope

  def in_scope(scale: np.ndarray, shift: np.ndarray) -> Tensor:
    reader, builder.graph.scope = builder.graph.scope, scope
    built: Tensor = build(scale, shift)
    builder.graph.scope = reader
    return built

  product = Product(
    in_scope,
    aval.shape,
    aval.dtype,
    channel_axis,
    np.ones(size),
    np.zeros(size),
  )
  if isinstance(kernel, Weight):
    # Not only when it is built, where the layer is not known any more.
    onnx_values.channel_steps(kernel, axis)
  return product


def convolution(
  builder: Builder, values: Sequence[Value], params: Any, aval: Any
) -> Value:
  """Build `conv_general_dilated`."""
  inputs, kernel = values
  numbers = params["dimension_numbers"]
  if params["batch_group_count"] != 1:
    raise ExportError("batch_group_count is not 1")
  if not is_constant(kernel):
    raise ExportError("its kernel is computed from the input")
  kernel = _rearranged(kernel, numbers.rhs_spec)
  window = kernel.shape[2:]
  dilations = params["rhs_dilation"]
  pads = np.array(params["padding"], int).reshape(-1, 2)
  groups = params["feature_group_count"]
  settings: dict[str, Any] = {"dilations": list(dilations), "group": groups}
  spreads = params["lhs_dilation"]
  spans = [d * (w - 1) for d, w in zip(dilations, window, strict=True)]
  scatters = any(d != 1 for d in spreads)
  if (pads < 0).any() or (
    scatters
    and (
      groups != 1
      or any(s != 1 for s in params["window_strides"])
      or (pads > np.array(spans)[:, None]).any()
    )
  ):
    # Neither of ONNX's convolutions does that: zeros, and a plain one.
    inputs = _spread(
      builder, inputs, pads, spreads, numbers.lhs_spec, aval.dtype
    )
    pads, scatters = np.zeros_like(pads), False
  if scatters:
    pads = np.array(spans)[:, None] - pads
    settings["strides"] = list(spreads)
    operation, channel = "ConvTranspose", 1

    def turned(array):
      return np.flip(array, tuple(range(2, array.ndim))).swapaxes(0, 1)

    kernel = (
      kernel.map(turned) if isinstance(kernel, Weight) else turned(kernel)
    )
  else:
    settings["strides"] = list(params["window_strides"])
    operation, channel = "Conv", 0
  settings["pads"] = pads.T.reshape(-1).tolist()
  settings["kernel_shape"] = list(window)
  if (
    operation == "Conv"
    and isinstance(kernel, Weight)
    and not kernel.offset
    and builder.has_codes(inputs)
    and settings["strides"] == list(window) == [1] * len(window)
    and groups == 1
    and not pads.any()
  ):
    return _pointwise(builder, inputs, kernel, numbers, aval)

  def build(scale: np.ndarray, shift: np.ndarray) -> Tensor:
    operands = [
      builder.ordered(inputs, numbers.lhs_spec),
      _operand(builder, kernel, channel, scale),
    ]
    if np.any(shift):
      operands.append(builder.graph.constant(shift, aval.dtype, "bias"))
    name = builder.graph.add(operation, *operands, **settings)
    return Tensor(name, aval.shape, aval.dtype, tuple(numbers.out_spec))

  return _later(builder, kernel, channel, build, aval, numbers.out_spec[1])


def _spread(
  builder: Builder,
  inputs: Value,
  pads: Any,
  spreads: Any,
  spec: Sequence[int],
  dtype: Any,
) -> Tensor:
  """Pad an input, cut it and put zeros between its elements."""
  config = [(0, 0, 0)] * len(spec)
  shape = list(inputs.shape)
  for axis, pair, spread in zip(spec[2:], pads, spreads, strict=True):
    low, high = (int(pad) for pad in pair)
    config[axis] = (low, high, spread - 1)
    shape[axis] = (shape[axis] - 1) * spread + 1 + low + high
  plain = builder.plain("", shape, dtype)
  return onnx_shapes.pad(builder, inputs, config, np.zeros((), dtype), plain)


def _pointwise(
  builder: Builder, inputs: Value, kernel: Weight, numbers: Any, aval: Any
) -> Value:
  """Build a convolution of codes without a window as a matrix product.

  onnxruntime then adds up integers, and adds the bias in float: it is as exact
  as the convolution in float, and faster at any bits.
  """
  matrix = kernel.map(lambda array: array.reshape(array.shape[:2]).T)

  def last(spec: Sequence[int]) -> tuple[int, ...]:
    return (spec[0], *spec[2:], spec[1])

  def build(scale: np.ndarray, shift: np.ndarray) -> Tensor:
    first = builder.ordered(inputs, last(numbers.lhs_spec))
    bias = shift.astype(aval.dtype)
    name = _multiply(builder, first, matrix, scale, bias, len(aval.shape))
    axes = last(numbers.out_spec)
    return Tensor(name, aval.shape, aval.dtype, axes)

  return _later(builder, matrix, 1, build, aval, numbers.out_spec[1])


def _multiply(
  builder: Builder,
  first: str,
  kernel: Value,
  scale: np.ndarray,
  shift: np.ndarray,
  rank: int,
) -> str:
  """Build a product by a matrix, of a rank, and its bias."""
  axis = len(kernel.shape) - 1
  name = builder.graph.add(
    "MatMul", first, _operand(builder, kernel, axis, scale)
  )
  if np.any(shift):
    if isinstance(kernel, Weight):
      # Of a vector, onnxruntime would make a product in float with a bias.
      shift = shift.reshape([1] * (rank - 1) + [-1])
    bias = builder.graph.constant(shift, name="bias")
    name = builder.graph.add("Add", name, bias)
  return name


def matrix_product(
  builder: Builder, values: Sequence[Value], params: Any, aval: Any
) -> Value:
  """Build `dot_general`."""
  (sums, batches), (left, right) = params["dimension_numbers"], values
  ranks = [len(left.shape), len(right.shape)]
  free = [
    [i for i in range(rank) if i not in summed and i not in batch]
    for rank, summed, batch in zip(ranks, sums, batches, strict=True)
  ]
  count = len(batches[0])
  if is_constant(left) and not is_constant(right):
    # The constant comes second, so that channels lie last.
    swapped = {"dimension_numbers": (sums[::-1], batches[::-1])}
    middle = count + len(free[0])
    order = [
      *range(count),
      *range(middle, len(aval.shape)),
      *range(count, middle),
    ]
    shape = tuple(aval.shape[i] for i in order)
    result = builder.tensor(
      matrix_product(
        builder, (right, left), swapped, builder.plain("", shape, aval.dtype)
      )
    )
    axes = tuple(order[axis] for axis in result.axes)
    return Tensor(result.name, aval.shape, aval.dtype, axes)
  first = builder.ordered(left, [*batches[0], *free[0], *sums[0]])
  rows = [left.shape[i] for i in free[0]]
  outputs = [right.shape[i] for i in free[1]]
  summed = [left.shape[i] for i in sums[0]]
  batch = [left.shape[i] for i in batches[0]]
  # Without a batch the rows may have any number of axes.
  flat_rows = rows if not batch and rows else [_size(rows)]
  if len(summed) != 1 or len(flat_rows) != len(rows):
    first = builder.reshape(first, [*batch, *flat_rows, _size(summed)])
  order = [*batches[1], *sums[1], *free[1]]
  sizes: list[Any] = [*batch, _size(summed), _size(outputs)]
  flat: Any = (*batch, *flat_rows, sizes[-1])

  def finish(name: str) -> Tensor:
    if flat != tuple(aval.shape):
      name = builder.reshape(name, aval.shape)
    return builder.plain(name, aval.shape, aval.dtype)

  if not is_constant(right):
    second = builder.ordered(right, order)
    if tuple(sizes) != tuple(right.shape[i] for i in order):
      second = builder.reshape(second, sizes)
    return finish(builder.graph.add("MatMul", first, second))
  kernel = _rearranged(right, order)
  kernel = (
    kernel.map(lambda array: array.reshape(sizes))
    if isinstance(kernel, Weight)
    else kernel.reshape(sizes)  # type: ignore[union-attr]
  )

  def build(scale: np.ndarray, shift: np.ndarray) -> Tensor:
    bias = shift.astype(aval.dtype)
    return finish(_multiply(builder, first, kernel, scale, bias, len(flat)))

  product = _later(
    builder, kernel, len(sizes) - 1, build, aval, len(aval.shape) - 1
  )
  # Channels of several axes have no axis to multiply along.
  return product if len(outputs) == 1 else builder.tensor(product)


def _size(sizes: Sequence[Any]) -> Any:
  return math.prod(sizes)
