"""The product of one layer as an ONNX model, and how onnxruntime opens it."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from asga_jax import policy as policy_lib
from asga_jax.network import counting

# The first with integers of 2 bits.
OPSET = 25
IR_VERSION = 13
# Bits that a weight may take in a file -> its type.
_TYPES = {2: ml_dtypes.int2, 4: ml_dtypes.int4, 8: np.int8}
_FLOAT = policy_lib.FLOAT_BITS


@dataclasses.dataclass(frozen=True)
class Product:
  """The shapes of one product, in ONNX's order of axes.

  A convolution has `strides`; its input is (batch, channels, *places), its
  kernel (outputs, channels / groups, *window), and `pads` come first for the
  start of every axis, then for its end. Otherwise it is a matrix product of
  (rows, channels) and (channels, outputs).
  """

  input_shape: tuple[int, ...]
  kernel_shape: tuple[int, ...]
  strides: tuple[int, ...] = ()
  dilations: tuple[int, ...] = ()
  pads: tuple[int, ...] = ()
  groups: int = 1

  @property
  def is_convolution(self) -> bool:
    """Whether it is a convolution, not a matrix product."""
    return bool(self.strides)

  @property
  def output_shape(self) -> tuple[int, ...]:
    """The shape of the result: (batch, outputs, *places) or (rows, outputs)."""
    if not self.is_convolution:
      return (self.input_shape[0], self.kernel_shape[1])
    rank = len(self.strides)
    places = (
      (size + self.pads[i] + self.pads[rank + i] - dilation * (window - 1) - 1)
      // stride
      + 1
      for i, (size, window, stride, dilation) in enumerate(
        zip(
          self.input_shape[2:],
          self.kernel_shape[2:],
          self.strides,
          self.dilations,
          strict=True,
        )
      )
    )
    return (self.input_shape[0], self.kernel_shape[0], *places)


def weight_container(bits: int) -> int:
  """Give the bits that a weight takes in a file: 2, 4, 8, or 32 for float."""
  return next(width for width in (*_TYPES, _FLOAT) if width >= bits)


def activation_container(bits: int) -> int:
  """Give the bits that an activation takes: 8, or 32 for float."""
  return 8 if bits < _FLOAT else _FLOAT


def product_of(found: counting.Multiplication) -> Product:
  """Describe what a layer multiplies in one call.

  Args:
    found: of `reading.read`.

  Returns:
    The product.

  Raises:
    ValueError: a product that is built neither as a convolution nor as a matrix
      product; it names the layer.
  """
  first, second = found.shapes
  if found.operation == "conv_general_dilated":
    return _convolution(found)
  (_, summed), _ = found.equation.params["dimension_numbers"]
  inner = math.prod(second[axis] for axis in summed)
  outputs = math.prod(second) // inner
  return Product((math.prod(first) // inner, inner), (inner, outputs))


def _convolution(found: counting.Multiplication) -> Product:
  params = found.equation.params
  numbers = params["dimension_numbers"]
  if set(params["lhs_dilation"]) != {1}:
    raise ValueError(
      f"layer {found.path!r} dilates its input by {params['lhs_dilation']}"
      " (a transposed convolution, or input_dilation), which an ONNX"
      " convolution lacks; expected 1."
    )
  pads = params["padding"]
  inputs, kernel = (
    tuple(shape[axis] for axis in axes)
    for shape, axes in zip(
      found.shapes, (numbers.lhs_spec, numbers.rhs_spec), strict=True
    )
  )
  return Product(
    inputs,
    kernel,
    strides=tuple(params["window_strides"]),
    dilations=tuple(params["rhs_dilation"]),
    pads=tuple(pair[0] for pair in pads) + tuple(pair[1] for pair in pads),
    groups=params["feature_group_count"],
  )


def make_model(
  product: Product,
  kernel: np.ndarray,
  weight_bits: int,
  activation_bits: int,
) -> onnx.ModelProto:
  """Build a product as a model that reads `x` and writes `y`.

  Weights below 32 bits are stored in their container with one step an output
  channel, and cast to int8, which a runtime does once, when it loads the model:
  kernels for 8-bit integers are what there is, or to float where the input is
  float. Activations below 32 bits are uint8 codes with the policy's number of
  levels; `x` in [-1, 1), and `y` within six of its deviations for `x` of even
  distribution.

  Args:
    product: the shapes.
    kernel: of shape `product.kernel_shape`, float32.
    weight_bits: 2..8, or 32 for float.
    activation_bits: of `x` and `y`; 2..8, or 32 for float.

  Returns:
    The model, checked.
  """
  axis = 0 if product.is_convolution else 1
  nodes = []
  constants = []

  def constant(name: str, value: Any, dtype: Any) -> None:
    constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))

  def add(
    operation: str, inputs: Sequence[str], output: str, **attributes: Any
  ) -> None:
    nodes.append(helper.make_node(operation, inputs, [output], **attributes))

  read, weights, written = "x", "w", "y"
  # A `DequantizeLinear` beside a float operand would have it quantized.
  is_integer = max(weight_bits, activation_bits) < _FLOAT
  if activation_bits < _FLOAT:
    levels = 2**activation_bits
    # What x is spread by, and the kernel adds up.
    norm = np.sqrt(np.square(kernel).sum(axis=_others(kernel, axis)).max())
    constant("x_step", 2 / levels, np.float32)
    constant("y_step", 12 / np.sqrt(3) * norm / levels, np.float32)
    constant("zero", levels // 2, np.uint8)
    read, written = "x_float", "y_float"
    if is_integer:
      add("DequantizeLinear", ["x", "x_step", "zero"], read)
    else:
      constant("x_zero", levels // 2, np.float32)
      add("Cast", ["x"], "x_codes", to=onnx.TensorProto.FLOAT)
      add("Sub", ["x_codes", "x_zero"], "x_whole")
      add("Mul", ["x_whole", "x_step"], read)
  if weight_bits < _FLOAT:
    codes, steps = _quantize(kernel, weight_bits, axis)
    constant("w_stored", codes, _TYPES[weight_container(weight_bits)])
    weights = "w_float"
    if is_integer:
      constant("w_step", steps.reshape(-1), np.float32)
      constant("w_zero", np.zeros(steps.size), np.int8)
      add("Cast", ["w_stored"], "w", to=onnx.TensorProto.INT8)
      add("DequantizeLinear", ["w", "w_step", "w_zero"], weights, axis=axis)
    else:
      constant("w_step", steps, np.float32)
      add("Cast", ["w_stored"], "w", to=onnx.TensorProto.FLOAT)
      add("Mul", ["w", "w_step"], weights)
  else:
    constant("w", kernel, np.float32)
  if product.is_convolution:
    add(
      "Conv",
      [read, weights],
      written,
      strides=product.strides,
      dilations=product.dilations,
      pads=product.pads,
      group=product.groups,
    )
  else:
    add("MatMul", [read, weights], written)
  dtype = onnx.TensorProto.FLOAT
  if activation_bits < _FLOAT:
    dtype = onnx.TensorProto.UINT8
    add("QuantizeLinear", [written, "y_step", "zero"], "y")
  graph = helper.make_graph(
    nodes,
    "layer",
    [helper.make_tensor_value_info("x", dtype, product.input_shape)],
    [helper.make_tensor_value_info("y", dtype, product.output_shape)],
    constants,
  )
  model = helper.make_model(
    graph,
    opset_imports=[helper.make_opsetid("", OPSET)],
    ir_version=IR_VERSION,
  )
  onnx.checker.check_model(model)
  return model


def open_session(
  model: onnx.ModelProto,
  *,
  threads: int = 1,
  optimize: bool = True,
  optimized_path: os.PathLike[str] | None = None,
) -> onnxruntime.InferenceSession:
  """Load a model on the CPU, as a default session of onnxruntime does.

  Only threads and messages are set, which change no number.

  Args:
    model: the model.
    threads: of each operation.
    optimize: whether the runtime may change the graph.
    optimized_path: where to write the graph that it made.

  Returns:
    The session.
  """
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  options.inter_op_num_threads = 1
  options.log_severity_level = 3
  if not optimize:
    options.graph_optimization_level = (
      onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
  if optimized_path is not None:
    options.optimized_model_filepath = os.fspath(optimized_path)
  return onnxruntime.InferenceSession(
    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
  )


def _others(kernel: np.ndarray, axis: int) -> tuple[int, ...]:
  return tuple(i for i in range(kernel.ndim) if i != axis)


def _quantize(
  kernel: np.ndarray, bits: int, axis: int
) -> tuple[np.ndarray, np.ndarray]:
  """Round to signed codes, with one step an output channel, kept as an axis."""
  largest = np.abs(kernel).max(axis=_others(kernel, axis), keepdims=True)
  steps = np.maximum(largest, 1e-12) / (2 ** (bits - 1) - 1)
  return np.rint(kernel / steps).astype(np.int8), steps
