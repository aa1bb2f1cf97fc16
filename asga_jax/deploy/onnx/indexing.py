"""Indexing, by fixed numbers or by computed ones, as nodes of ONNX."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import lax
from jax.lax import GatherScatterMode

from asga_jax.deploy.onnx import shapes as onnx_shapes
from asga_jax.deploy.onnx.values import ExportError, Rule, Shape, Tensor


def dynamic_slice(builder, values, params, aval):
  """Build a window that begins at known or at computed places."""
  operand, *starts = values
  sizes = params["slice_sizes"]
  bounds = []  # of the axes whose start is known
  for start, size, whole in zip(starts, sizes, operand.shape, strict=True):
    known = isinstance(start, np.ndarray)
    first = (
      int(np.clip(start, 0, whole - size)) if known and size != whole else 0
    )
    bounds.append((first, first + size) if known else (0, whole))
  begins, ends = zip(*bounds, strict=True)
  fixed = {"start_indices": begins, "limit_indices": ends, "strides": None}
  shape = [end - begin for begin, end in bounds]
  plain = builder.plain("", shape, aval.dtype)
  window = onnx_shapes.cut(builder, [operand], fixed, plain)
  add, constant = builder.graph.add, builder.graph.constant
  name = builder.ordered(window)
  for axis, start in enumerate(starts):
    size, whole = sizes[axis], operand.shape[axis]
    if isinstance(start, np.ndarray) or size == whole:
      continue
    if not isinstance(whole, int):
      raise ExportError("it cuts the batch")
    first = add("Cast", builder.ordered(start), to=onnx.TensorProto.INT64)
    limits = [constant(limit, np.int64) for limit in (0, whole - size)]
    first = add("Min", add("Max", first, limits[0]), limits[1])
    places = add("Add", first, constant(np.arange(size), np.int64))
    name = add("Gather", name, places, axis=axis)
  return builder.plain(name, aval.shape, aval.dtype)


def gather(builder, values, params, aval):
  """Build what indexing makes."""
  operand, indices = values
  numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
  if not isinstance(indices, np.ndarray):
    return _look_up(builder, operand, indices, params, aval)
  if numbers.operand_batching_dims:
    raise ExportError("it picks along several axes at once")
  picked = numbers.start_index_map
  if params["mode"] == GatherScatterMode.FILL_OR_DROP:
    # What is filled in is no element of the tensor.
    for axis, along in zip(picked, np.moveaxis(indices, -1, 0), strict=True):
      last = operand.shape[axis] - sizes[axis]
      if np.any((along < 0) | (along > last)):
        raise ExportError("it picks what lies outside of the tensor")
  if indices.ndim == 1:
    return _gather_one(builder, operand, indices, params, aval)
  whole = [a for a in range(len(operand.shape)) if a not in picked]
  if sorted(picked) != sorted(numbers.collapsed_slice_dims) or any(
    sizes[axis] != operand.shape[axis] for axis in whole
  ):
    raise ExportError("it picks windows at several places")
  places = np.zeros(indices.shape[:-1], np.int64)
  for axis, along in zip(picked, np.moveaxis(indices, -1, 0), strict=True):
    size = operand.shape[axis]
    if not isinstance(size, int):
      raise ExportError("it picks from the batch")
    places = places * size + np.clip(along, 0, size - 1)
  # The picked axes first, as one.
  name = builder.ordered(operand, [*picked, *whole])
  if len(picked) > 1:
    count = math.prod(operand.shape[axis] for axis in picked)
    rest = [operand.shape[axis] for axis in whole]
    name = builder.reshape(name, [count, *rest])
  indexed = builder.graph.constant(places, np.int64)
  name = builder.graph.add("Gather", name, indexed, axis=0)
  kept = numbers.offset_dims
  new = [axis for axis in range(len(aval.shape)) if axis not in kept]
  return Tensor(name, aval.shape, aval.dtype, (*new, *kept))


def _look_up(builder, operand, indices, params, aval):
  """Pick elements along some axes by computed numbers."""
  numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
  paired = numbers.operand_batching_dims
  picked = numbers.start_index_map
  if sizes != tuple(
    1 if axis in (*picked, *paired) else size
    for axis, size in enumerate(operand.shape)
  ):
    raise ExportError("it picks windows at computed places")
  lasts = [operand.shape[axis] - 1 for axis in picked]
  if not all(isinstance(last, int) for last in lasts):
    raise ExportError("it picks from the batch")
  add, constant = builder.graph.add, builder.graph.constant
  new = [i for i in range(len(aval.shape)) if i not in numbers.offset_dims]
  left = [
    axis
    for axis in range(len(operand.shape))
    if axis not in (*paired, *numbers.collapsed_slice_dims)
  ]
  whole = list(zip(numbers.offset_dims, left, strict=True))
  kept = [i for i, axis in whole if axis not in picked]
  ones = [i for i, axis in whole if axis in picked]
  # Of the indices first the axes that the operand has as well.
  shared = numbers.start_indices_batching_dims
  own = [i for i in range(len(indices.shape) - 1) if i not in shared]
  axes = (*(new[i] for i in (*shared, *own)), *kept, *ones)
  rank = len(indices.shape) - 1
  places = builder.ordered(indices, [*shared, *own, rank])
  ends = [constant(x, indices.dtype) for x in (np.zeros_like(lasts), lasts)]
  safe = add("Min", add("Max", places, ends[0]), ends[1])
  # ONNX has no indices of other types.
  wide = add("Cast", safe, to=onnx.TensorProto.INT64)
  rest = [i for i in range(len(operand.shape)) if i not in (*paired, *picked)]
  table = builder.ordered(operand, [*paired, *picked, *rest])
  if paired or len(picked) > 1:
    name = add("GatherND", table, wide, batch_dims=len(paired))
  else:
    last = constant([rank], np.int64)
    name = add("Gather", table, add("Squeeze", wide, last), axis=0)
  if params["mode"] == GatherScatterMode.FILL_OR_DROP:
    filled = params["fill_value"]
    if filled is None:
      filled = np.nan if aval.dtype.kind == "f" else 0
    inside = add("Cast", add("Equal", safe, places), to=onnx.TensorProto.INT32)
    last = constant([rank], np.int64)
    inside = add("ReduceMin", inside, last, keepdims=0)
    inside = add("Cast", inside, to=onnx.TensorProto.BOOL)
    if kept:
      inside = add(
        "Unsqueeze", inside, constant(np.arange(len(kept)) + rank, np.int64)
      )
    name = add("Where", inside, name, constant(filled, aval.dtype))
  if ones:
    last = np.arange(len(ones)) + len(aval.shape) - len(ones)
    name = add("Unsqueeze", name, constant(last, np.int64))
  return Tensor(name, aval.shape, aval.dtype, axes)


def _gather_one(builder, operand, indices, params, aval):
  """Cut one window at a known place."""
  numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
  starts: list[np.ndarray] = [np.zeros((), np.int64)] * len(operand.shape)
  for axis, start in zip(numbers.start_index_map, indices, strict=True):
    starts[axis] = np.asarray(start)
  fixed = {"slice_sizes": sizes}
  whole = aval.update(shape=tuple(sizes))
  window = dynamic_slice(builder, [operand, *starts], fixed, whole)
  gone = {"dimensions": numbers.collapsed_slice_dims}
  if not gone["dimensions"]:
    return window
  return onnx_shapes.squeeze(builder, [window], gone, aval)


_REDUCTIONS = {
  "scatter": "none",
  "scatter-add": "add",
  "scatter-max": "max",
  "scatter-min": "min",
  "scatter-mul": "mul",
}


def _scatter(reduction: str) -> Rule:
  """Build what is written to known places of each example."""

  def rule(builder, values, params, aval):
    operand, indices, updates = values
    if not isinstance(indices, np.ndarray):
      raise ExportError("where it writes is computed from the input")
    # The batch first, all else as one axis.
    first, axes = _batch_first(operand.shape)
    rows, order = _batch_first(updates.shape)
    places = _places(indices, params, operand.shape, updates.shape)
    places = places.transpose(order).reshape(-1)
    count = np.prod([operand.shape[i] for i in axes if i != first], dtype=int)
    add, constant = builder.graph.add, builder.graph.constant
    flat = builder.reshape(builder.ordered(operand, axes), [-1, int(count)])
    written = builder.reshape(
      builder.ordered(updates, order), [-1, places.size]
    )
    if (places < 0).any():
      (kept,) = np.nonzero(places >= 0)
      written = add("Gather", written, constant(kept, np.int64), axis=1)
      places = places[kept]
    if rows is None and first is not None:
      rows_of = builder.sizes([operand.shape[first], places.size])
      written = add("Expand", written, rows_of)
    shape = add("Shape", written)
    where = add("Expand", constant(places[None], np.int64), shape)
    name = add(
      "ScatterElements", flat, where, written, axis=1, reduction=reduction
    )
    name = builder.reshape(name, [aval.shape[i] for i in axes])
    return Tensor(name, aval.shape, aval.dtype, tuple(axes))

  return rule


def _batch_first(shape: Shape) -> tuple[int | None, list[int]]:
  """Give the axis that is the batch, and an order of axes that begins by it."""
  unknown = [i for i, size in enumerate(shape) if not isinstance(size, int)]
  if len(unknown) > 1:
    raise ExportError("it writes to the batch twice")
  known = [i for i in range(len(shape)) if i not in unknown]
  return (unknown[0] if unknown else None), [*unknown, *known]


def _places(
  indices: np.ndarray, params: Any, operand: Shape, updates: Shape
) -> np.ndarray:
  """Give where each element of an example goes, flat; -1 if it is dropped."""
  first, _ = _batch_first(operand)
  numbers = params["dimension_numbers"]
  if first in numbers.scatter_dims_to_operand_dims:
    raise ExportError("it writes to some examples of the batch")
  one = [size if isinstance(size, int) else 1 for size in operand]
  of_updates = [size if isinstance(size, int) else 1 for size in updates]
  size = int(np.prod(one))
  if size >= 2**24:
    raise ExportError(f"it writes to a tensor of {size} elements")

  def spread(x):
    return lax.scatter_add(
      jnp.zeros(one, np.float32), indices, x, numbers, mode=params["mode"]
    )

  shape = jax.ShapeDtypeStruct(of_updates, np.float32)
  numbered = np.arange(1, size + 1, dtype=np.float32).reshape(one)
  (found,) = jax.linear_transpose(spread, shape)(numbered)
  return np.asarray(found).astype(np.int64) - 1


RULES: dict[str, Rule] = {
  "dynamic_slice": dynamic_slice,
  "gather": gather,
  **{name: _scatter(found) for name, found in _REDUCTIONS.items()},
}
