"""Indexing, by fixed numbers or one axis by computed ones, as nodes of ONNX."""

import math

import numpy as np
from jax.lax import GatherScatterMode

from asga_jax.deploy.onnx import shapes as onnx_shapes
from asga_jax.deploy.onnx.values import ExportError, Tensor


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
  return onnx_shapes.cut(builder, [operand], fixed, aval)


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
  """Pick along one axis by computed numbers, as an embedding does."""
  numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
  whole = tuple(
    1 if axis in numbers.collapsed_slice_dims else size
    for axis, size in enumerate(operand.shape)
  )
  picked = numbers.start_index_map
  plain = len(picked) == 1 and numbers.collapsed_slice_dims == picked
  if not plain or sizes != whole or numbers.operand_batching_dims:
    raise ExportError("what it picks along several axes is computed")
  (axis,) = picked
  size = operand.shape[axis]
  if not isinstance(size, int):
    raise ExportError("it picks from the batch")
  add, constant = builder.graph.add, builder.graph.constant
  kept = numbers.offset_dims
  new = [i for i in range(len(aval.shape)) if i not in kept]
  places = builder.reshape(builder.ordered(indices), indices.shape[:-1])
  ends = [constant(end, indices.dtype) for end in (0, size - 1)]
  safe = add("Min", add("Max", places, ends[0]), ends[1])
  rest = [i for i in range(len(operand.shape)) if i != axis]
  table = builder.ordered(operand, [axis, *rest])
  name = add("Gather", table, safe, axis=0)
  if params["mode"] == GatherScatterMode.FILL_OR_DROP:
    filled = params["fill_value"]
    if filled is None:
      filled = np.nan if aval.dtype.kind == "f" else 0
    inside = add("Equal", safe, places)
    shape = [aval.shape[i] for i in new] + [1] * len(kept)
    inside = builder.reshape(inside, shape)
    name = add("Where", inside, name, constant(filled, aval.dtype))
  return Tensor(name, aval.shape, aval.dtype, (*new, *kept))


def _gather_one(builder, operand, indices, params, aval):
  """Cut one window at a known place."""
  numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
  starts: list[np.ndarray] = [np.zeros((), np.int64)] * len(operand.shape)
  for axis, start in zip(numbers.start_index_map, indices, strict=True):
    starts[axis] = np.asarray(start)
  fixed = {"slice_sizes": sizes}
  whole = aval.update(shape=tuple(sizes))
  window = _cut(builder, [operand, *starts], fixed, whole)
  gone = {"dimensions": numbers.collapsed_slice_dims}
  if not gone["dimensions"]:
    return window
  return onnx_shapes.squeeze(builder, [window], gone, aval)
