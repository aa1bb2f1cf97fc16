"""What a variable of a jaxpr is while its network becomes an ONNX graph."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from onnx import helper

from asga_jax.deploy.onnx import graph as onnx_graph
from asga_jax.deploy.onnx import layer as onnx_layer

# Sizes of a tensor, of which one may be symbolic: the batch.
Shape: TypeAlias = tuple[Any, ...]
_STORED = {2: ml_dtypes.int2, 4: ml_dtypes.int4, 8: np.int8}


class ExportError(ValueError):
  """A network, or an operation in it, that cannot be exported."""

  # The operation, once the message names it.
  operation: str = ""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor that the graph computes, whose axes may lie in another order."""

  name: str
  shape: Shape
  dtype: np.dtype
  # Which axis of this tensor each axis in the graph holds.
  axes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
  """A quantized constant, steps * (codes + offset)."""

  codes: np.ndarray  # whole numbers
  steps: np.ndarray  # of the codes' shape
  bits: int
  offset: float
  path: str

  @property
  def shape(self) -> Shape:
    """The shape of the constant."""
    return self.codes.shape

  def map(self, change: Callable[[np.ndarray], Any]) -> "Weight":
    """Rearrange the constant."""
    codes, steps = (
      np.asarray(change(array)) for array in (self.codes, self.steps)
    )
    return dataclasses.replace(self, codes=codes, steps=steps)


@dataclasses.dataclass(frozen=True)
class Product:
  """A product by a constant, not built yet: channels times scale plus shift."""

  # Of (scale, shift), each float64 of shape (channels,).
  build: Callable[[np.ndarray, np.ndarray], Tensor]
  shape: Shape
  dtype: np.dtype
  channel_axis: int
  scale: np.ndarray  # shape=(channels,), dtype=float64
  shift: np.ndarray  # shape=(channels,), dtype=float64

  def vector(self, value: Any) -> np.ndarray | None:
    """Give a constant as one number a channel, None if it has others."""
    if not isinstance(value, np.ndarray):
      return None
    sizes = [n for i, n in enumerate(value.shape) if i != self.channel_axis]
    if value.ndim not in (0, len(self.shape)) or any(n != 1 for n in sizes):
      return None
    vector: np.ndarray = np.broadcast_to(value.reshape(-1), self.scale.shape)
    return vector.astype(np.float64)

  def affine(self, scale: Any, shift: Any) -> "Product":
    """Multiply and add."""
    return dataclasses.replace(
      self, scale=self.scale * scale, shift=self.shift * scale + shift
    )


@dataclasses.dataclass(frozen=True)
class Clipped:
  """A value between two bounds, not built yet."""

  base: "Tensor | Product"
  low: float
  high: float

  @property
  def shape(self) -> Shape:
    """The shape of the value."""
    return self.base.shape

  @property
  def dtype(self) -> np.dtype:
    """The dtype of the value."""
    return self.base.dtype


# A NumPy array is a constant that is known as the network is read.
Value: TypeAlias = np.ndarray | Tensor | Weight | Product | Clipped


class Builder:
  """A graph, and what is known of its input's batch."""

  def __init__(self, graph: onnx_graph.Graph, batch: Any, batch_source: str):
    """Take a graph, the symbol of the batch and an input that has it first."""
    self.graph = graph
    self.batch = batch
    self._batch_source = batch_source

  def tensor(self, value: Value) -> Tensor:
    """Build a value, if it is not built yet."""
    match value:
      case Tensor():
        return value
      case Product():
        return value.build(value.scale, value.shift)
      case Clipped():
        base = self.tensor(value.base)
        return dataclasses.replace(base, name=self._clip(base.name, value))
      case Weight():
        axis = _step_axis(value.steps)
        name = self.weight(value, axis, np.ones(value.shape[axis]))
        return self.plain(name, value.shape, np.float32)
    # Random keys and the like have no place in a graph.
    return self.plain(self.graph.constant(value), value.shape, value.dtype)

  def _clip(self, name: str, value: Clipped) -> str:
    low, high = value.low, value.high
    if (low, high) == (0, np.inf):
      return self.graph.add("Relu", name)
    bounds = [
      self.graph.constant(bound, value.dtype) if np.isfinite(bound) else ""
      for bound in (low, high)
    ]
    return self.graph.add("Clip", name, *bounds)

  def plain(self, name: str, shape: Sequence[Any], dtype: Any) -> Tensor:
    """Describe a tensor of the graph whose axes are in order."""
    shape = tuple(shape)
    return Tensor(name, shape, np.dtype(dtype), tuple(range(len(shape))))

  def ordered(self, value: Value, axes: Sequence[int] | None = None) -> str:
    """Build a value with its axes in an order, by default their own."""
    if isinstance(value, np.ndarray):
      ordered = value if axes is None else value.transpose(axes)
      return self.graph.constant(ordered)
    tensor = self.tensor(value)
    axes = tuple(range(len(tensor.shape))) if axes is None else axes
    order = [tensor.axes.index(axis) for axis in axes]
    if order == list(range(len(order))):
      return tensor.name
    if self.has_codes(tensor):
      # Bytes are moved, and still read as codes by what follows.
      node = self.graph.nodes[tensor.name]
      codes = self.graph.add("Transpose", node.input[0], perm=order)
      return self.graph.add("DequantizeLinear", codes, *node.input[1:])
    return self.graph.add("Transpose", tensor.name, perm=order)

  def has_codes(self, value: Value) -> bool:
    """Say whether a value is a quantized activation."""
    if not isinstance(value, Tensor):
      return False
    node = self.graph.nodes.get(value.name)
    if node is None or node.op_type != "DequantizeLinear":
      return False
    return not node.attribute  # a kernel's has an axis

  def sizes(self, shape: Sequence[Any]) -> str:
    """Build a shape as a tensor; the batch may stand in it as itself."""
    if all(isinstance(size, int) for size in shape):
      return self.graph.constant(shape, np.int64)
    batch = self.graph.add("Shape", self._batch_source, start=0, end=1)
    parts = []
    for size in shape:
      if isinstance(size, int):
        parts.append(self.graph.constant([size], np.int64))
      elif size == self.batch:
        parts.append(batch)
      else:
        raise ExportError(f"a tensor has the size {size}")
    return self.graph.add("Concat", *parts, axis=0)

  def reshape(self, name: str, shape: Sequence[Any]) -> str:
    """Reshape a tensor whose axes are in order."""
    unknown = [size for size in shape if not isinstance(size, int)]
    if len(unknown) > 1:
      return self.graph.add("Reshape", name, self.sizes(shape))
    numbers = [size if isinstance(size, int) else -1 for size in shape]
    return self.graph.add(
      "Reshape", name, self.graph.constant(numbers, np.int64)
    )

  def weight(self, weight: Weight, axis: int, scale: np.ndarray) -> str:
    """Store a weight in its container and build what it stands for.

    Args:
      weight: with one step for each index of an axis.
      axis: that axis.
      scale: what to multiply by, one number for each index, float64.

    Returns:
      The name of the float tensor.

    Raises:
      ExportError: steps that vary along another axis.
    """
    steps = channel_steps(weight, axis)
    shape = [1] * len(weight.shape)
    shape[axis] = -1
    product = steps * scale
    # A channel that is multiplied by nothing keeps a step that can be one.
    usable = np.abs(product) >= np.finfo(np.float32).tiny
    sign = np.sign(np.where(usable, product, 1)).reshape(shape)
    codes = np.where(sign < 0, -weight.codes - 2 * weight.offset, weight.codes)
    codes = np.where(usable.reshape(shape), codes, 0)
    width = onnx_layer.weight_container(weight.bits)
    stored = self.graph.constant(codes, _STORED[width], "kernel")
    # A runtime does this once, when it loads the model; it has kernels for
    # int8 alone.
    if width < 8:
      stored = self.graph.add("Cast", stored, to=_type(np.int8))
    step = np.where(usable, np.abs(product), 1).astype(np.float32)
    name = self.graph.add(
      "DequantizeLinear", stored, self.graph.constant(step), axis=axis
    )
    offset = np.where(usable, weight.offset, 0) * step
    if np.any(offset):
      addend = self.graph.constant(offset.reshape(shape), np.float32)
      name = self.graph.add("Add", name, addend)
    return name


def _type(dtype: Any) -> int:
  return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _step_axis(steps: np.ndarray) -> int:
  """Find the axis along which steps vary."""
  for axis in range(steps.ndim):
    if np.any(steps != steps.take([0], axis)):
      return axis
  return steps.ndim - 1


def channel_steps(weight: Weight, axis: int) -> np.ndarray:
  """Give the step of each index of an axis, float64.

  Raises:
    ExportError: steps that vary along another axis.
  """
  moved = np.moveaxis(weight.steps, axis, 0).reshape(weight.shape[axis], -1)
  if np.any(moved != moved[:, :1]):
    raise ExportError("its weights have steps along another axis")
  return moved[:, 0].astype(np.float64)


# How a primitive is written, of (builder, inputs, parameters, what is known of
# the output).
Rule: TypeAlias = Callable[[Builder, Sequence[Value], Any, Any], Value]
