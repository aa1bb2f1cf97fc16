"""Operations of a jaxpr that move, cut and reduce, as nodes of ONNX."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

from asga_jax.deploy.onnx.values import (
  Builder,
  ExportError,
  Rule,
  Tensor,
  Value,
)


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


RULES: dict[str, Rule] = {
  "argmax": _arg("ArgMax"),
  "argmin": _arg("ArgMin"),
  "broadcast_in_dim": _broadcast_in_dim,
  "concatenate": _concatenate,
  "gather": _gather,
  "pad": _pad,
  "reduce_max": _reduce("ReduceMax"),
  "reduce_min": _reduce("ReduceMin"),
  "reduce_prod": _reduce("ReduceProd"),
  "reduce_sum": _reduce("ReduceSum"),
  "reduce_window_max": _pool("MaxPool"),
  "reduce_window_sum": _pool("AveragePool"),
  "reshape": _reshape,
  "rev": _reverse,
  "slice": _slice,
  "squeeze": _squeeze,
  "stack": _stack,
  "transpose": _transpose,
}
