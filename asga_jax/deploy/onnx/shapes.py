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


def squeeze(builder, values, params, aval):
  """Build `squeeze`."""
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


def _padded(
  builder: Builder, name: str, pads: Sequence[int], operation: str
) -> str:
  """Pad all axes after the first two by what a pool passes over."""
  half = len(pads) // 2
  value = 0.0 if operation == "AveragePool" else -np.inf
  return builder.graph.add(
    "Pad",
    name,
    builder.graph.constant([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64),
    builder.graph.constant(value, np.float32),
  )


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
    name = builder.ordered(values[0], axes)
    if any(
      pad >= size
      for pair, size in zip(pads, settings["kernel_shape"], strict=True)
      for pad in pair
    ):
      # A runtime refuses to pool over padding alone.
      name = _padded(builder, name, settings.pop("pads"), operation)
    if operation == "AveragePool":
      settings["count_include_pad"] = 1
    name = builder.graph.add(operation, name, **settings)
    if operation == "AveragePool":
      count = builder.graph.constant(np.prod(window), aval.dtype)
      name = builder.graph.add("Mul", name, count)
    return Tensor(name, aval.shape, aval.dtype, axes)

  return rule


def is_empty(aval: Any) -> bool:
  """Say whether a tensor has no elements, whatever the batch."""
  return any(isinstance(size, int) and size == 0 for size in aval.shape)


def _concatenate(builder, values, params, aval):
  # Padding by nothing leaves such parts.
  names = [builder.ordered(value) for value in values if not is_empty(value)]
  name = builder.graph.add("Concat", *names, axis=params["dimension"])
  return builder.plain(name, aval.shape, aval.dtype)


def _tile(builder, values, params, aval):
  times = builder.sizes(params["reps"])
  name = builder.graph.add("Tile", builder.ordered(values[0]), times)
  return builder.plain(name, aval.shape, aval.dtype)


def _stack(builder, values, params, aval):
  axis = builder.graph.constant([params["axis"]], np.int64)
  names = [
    builder.graph.add("Unsqueeze", builder.ordered(value), axis)
    for value in values
  ]
  name = builder.graph.add("Concat", *names, axis=params["axis"])
  return builder.plain(name, aval.shape, aval.dtype)


def _from_end(place: Any, size: Any) -> int:
  """Give a place along an axis, counted from its end if that is symbolic."""
  if isinstance(place, int):
    return place
  left = size - place
  if not isinstance(left, int) or left <= 0:
    raise ExportError("it cuts the batch")
  return -left


def cut(builder, values, params, aval):
  """Build `slice`."""
  starts, ends = params["start_indices"], params["limit_indices"]
  steps = params["strides"] or (1,) * len(starts)
  rows = [
    (
      _from_end(start, size),
      np.iinfo(np.int64).max if end == size else _from_end(end, size),
      axis,
      step,
    )
    for axis, (start, end, step, size) in enumerate(
      zip(starts, ends, steps, values[0].shape, strict=True)
    )
    if not (isinstance(start, int) and start == 0 and step == 1 and end == size)
  ]
  name = builder.ordered(values[0])
  if rows:
    bounds = [
      builder.graph.constant(column, np.int64)
      for column in zip(*rows, strict=True)
    ]
    name = builder.graph.add("Slice", name, *bounds)
  return builder.plain(name, aval.shape, aval.dtype)


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
    parts.append(cut(builder, [value], fixed, aval))
    start = ends[axis]
  return parts


RULES: dict[str, Rule] = {
  "argmax": _arg("ArgMax"),
  "argmin": _arg("ArgMin"),
  "broadcast_in_dim": _broadcast_in_dim,
  "concatenate": _concatenate,
  "pad": _pad,
  "reduce_max": _reduce("ReduceMax"),
  "reduce_min": _reduce("ReduceMin"),
  "reduce_prod": _reduce("ReduceProd"),
  "reduce_sum": _reduce("ReduceSum"),
  "reduce_window_max": _pool("MaxPool"),
  "reduce_window_sum": _pool("AveragePool"),
  "reshape": _reshape,
  "rev": _reverse,
  "slice": cut,
  "squeeze": squeeze,
  "stack": _stack,
  "tile": _tile,
  "transpose": _transpose,
}
