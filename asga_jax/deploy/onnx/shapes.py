"""Operations of a jaxpr that move, cut and reduce, as nodes of ONNX."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
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
    if values[0].dtype == np.bool_:
      name = builder.graph.add("Cast", name, to=onnx.TensorProto.INT32)
    found = builder.graph.add(operation, name, axis=axis, keepdims=0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
    found = builder.graph.add("Cast", found, to=kind)
    return builder.plain(found, aval.shape, aval.dtype)

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


def pad(
  builder: Builder, value: Value, config: Any, fill: Value, aval: Any
) -> Tensor:
  """Pad at both ends, between elements, or cut where a number is negative."""
  name, axes = builder.ordered(value), range(len(aval.shape))
  if any(inner for *_, inner in config):
    name = _spread(builder, name, value.shape, config, fill)
  pads = [int(max(row[side], 0)) for side in (0, 1) for row in config]
  if any(pads):
    name = builder.graph.add(
      "Pad",
      name,
      builder.graph.constant(pads, np.int64),
      builder.ordered(fill),
    )
  cuts = [axis for axis in axes if min(config[axis][:2]) < 0]
  if cuts:
    rows = [
      (
        max(-config[axis][0], 0),
        min(config[axis][1], 0) or np.iinfo(np.int64).max,
        axis,
      )
      for axis in cuts
    ]
    bounds = [
      builder.graph.constant(x, np.int64) for x in zip(*rows, strict=True)
    ]
    name = builder.graph.add("Slice", name, *bounds)
  return builder.plain(name, aval.shape, aval.dtype)


def _spread(
  builder: Builder, name: str, shape: Sequence[Any], config: Any, fill: Value
) -> str:
  """Put elements between those of a tensor, along the axes that ask."""
  sizes = list(shape)
  for axis, (*_, inner) in enumerate(config):
    if not inner:
      continue
    if not isinstance(sizes[axis], int):
      raise ExportError("it pads between examples of the batch")
    after = builder.graph.constant([axis + 1], np.int64)
    name = builder.graph.add("Unsqueeze", name, after)
    pads = [0] * 2 * (len(sizes) + 1)
    pads[len(sizes) + 1 + axis + 1] = int(inner)
    name = builder.graph.add(
      "Pad",
      name,
      builder.graph.constant(pads, np.int64),
      builder.ordered(fill),
    )
    sizes[axis] *= inner + 1
    name = builder.reshape(name, sizes)
    sizes[axis] -= inner
    bounds = [
      builder.graph.constant([bound], np.int64)
      for bound in (0, sizes[axis], axis)
    ]
    name = builder.graph.add("Slice", name, *bounds)
  return name


def _pad(builder, values, params, aval):
  return pad(builder, values[0], params["padding_config"], values[1], aval)


def _cumsum(builder, values, params, aval):
  name = builder.ordered(values[0])
  axis = builder.graph.constant(params["axis"], np.int64)
  name = builder.graph.add("CumSum", name, axis, reverse=int(params["reverse"]))
  return builder.plain(name, aval.shape, aval.dtype)


def _split(builder, values, params, avals):
  """Cut a tensor into parts along an axis."""
  axis, start = params["axis"], 0
  parts = []
  for aval in avals:
    starts: list[int] = [0] * len(aval.shape)
    ends = list(values[0].shape)
    starts[axis], ends[axis] = start, start + aval.shape[axis]
    fixed = {"start_indices": starts, "limit_indices": ends, "strides": None}
    parts.append(cut(builder, values, fixed, aval))
    start = ends[axis]
  return parts


def _order(
  builder: Builder, value: Value, count: int, axis: int, largest: bool
) -> str:
  """Build the places of the first elements of an order, equal ones in turn."""
  if not isinstance(value.shape[axis], int):
    raise ExportError("it sorts the batch")
  return builder.graph.add(
    "TopK",
    builder.ordered(value),
    builder.graph.constant([count], np.int64),
    output=1,
    axis=axis,
    largest=int(largest),
  )


def _sort(builder, values, params, avals):
  axis = params["dimension"]
  if params["num_keys"] != 1:
    raise ExportError(f"it sorts by {params['num_keys']} keys")
  order = _order(builder, values[0], values[0].shape[axis], axis, False)
  return [
    builder.plain(
      builder.graph.add(
        "GatherElements", builder.ordered(value), order, axis=axis
      ),
      aval.shape,
      aval.dtype,
    )
    for value, aval in zip(values, avals, strict=True)
  ]


def _top(builder, values, params, avals):
  axis = params["axis"] % len(values[0].shape)
  order = _order(builder, values[0], params["k"], axis, True)
  name = builder.ordered(values[0])
  kind = helper.np_dtype_to_tensor_dtype(np.dtype(avals[1].dtype))
  names = (
    builder.graph.add("GatherElements", name, order, axis=axis),
    builder.graph.add("Cast", order, to=kind),
  )
  return [
    builder.plain(name, aval.shape, aval.dtype)
    for name, aval in zip(names, avals, strict=True)
  ]


def _iota(builder, values, params, aval):
  """Build the number of each example of a batch."""
  del values
  axis, shape = params["dimension"], aval.shape
  size = builder.reshape(builder.sizes([shape[axis]]), [])
  ends = [builder.graph.constant(end, np.int64) for end in (0, 1)]
  name = builder.graph.add("Range", ends[0], size, ends[1])
  kind = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
  name = builder.graph.add("Cast", name, to=kind)
  flat = builder.plain(name, [shape[axis]], aval.dtype)
  settings = {"broadcast_dimensions": (axis,)}
  return _broadcast_in_dim(builder, [flat], settings, aval)


# Those of several results, of which they know each.
SEVERAL: dict[str, Callable[..., list[Tensor]]] = {
  "sort": _sort,
  "split": _split,
  "top_k": _top,
}

RULES: dict[str, Rule] = {
  "argmax": _arg("ArgMax"),
  "argmin": _arg("ArgMin"),
  "broadcast_in_dim": _broadcast_in_dim,
  "concatenate": _concatenate,
  "cumsum": _cumsum,
  "iota": _iota,
  "pad": _pad,
  "reduce_max": _reduce("ReduceMax"),
  "reduce_min": _reduce("ReduceMin"),
  "reduce_prod": _reduce("ReduceProd"),
  "reduce_sum": _reduce("ReduceSum"),
  "reshape": _reshape,
  "rev": _reverse,
  "slice": cut,
  "squeeze": squeeze,
  "stack": _stack,
  "tile": _tile,
  "transpose": _transpose,
}
