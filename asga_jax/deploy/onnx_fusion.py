"""Puts a graph in the forms that onnxruntime runs fast on a CPU."""

import numpy as np
import onnx
from onnx import helper

from asga_jax.deploy import onnx_graph

_PRODUCTS = ("Conv", "ConvTranspose")
# Room for the sum beside the bias.
_LARGEST = 2**30
# The noise that rounded biases may add to a result, as a share of its range.
# A bias that is moved by d steps moves about that share of the codes by one,
# and deep networks at few bits carry that on: with 0.003 convolutions of 8 bits
# run as integers and faster, and a fifth of MobileNetV2's predictions change.
TOLERANCE = 0.0
# Two products are added in 16 bits where a processor knows no better.
_PAIR = 2**15 - 1


def fit_to_runtime(graph: onnx_graph.Graph) -> None:
  """Prepare each convolution for how its result is read; in place.

  Where codes are all that is made of it, it runs as `QLinearConv`, whose bias
  is a 32-bit whole number of steps of its sum. Elsewhere it runs in float, and
  its kernel is not dequantized again at every run.
  """
  graph.scope = ""
  users = graph.users()
  for name, node in list(graph.nodes.items()):
    if node.op_type not in _PRODUCTS:
      continue
    kernel = graph.nodes.get(node.input[1])
    if kernel is None or kernel.op_type != "DequantizeLinear":
      continue
    source = graph.nodes.get(node.input[0])
    fuses = (
      node.op_type == "Conv"
      and source is not None
      and source.op_type == "DequantizeLinear"
      and [user.op_type for user in users[name]] == ["QuantizeLinear"]
    )
    if fuses and source is not None:
      graph.scope = name
      result = users[name][0]
      step = graph.constants[result.input[1]]
      after = users[result.output[0]][0]
      levels = _levels(graph, after)
      allowed = (TOLERANCE * levels) ** 2 * step
      fuses = _quantize_bias(graph, node, source, kernel, float(allowed))
    if not fuses:
      graph.scope = name
      node.input[1] = _unpacked(graph, kernel)


def _levels(graph: onnx_graph.Graph, node: onnx.NodeProto) -> int:
  """Count the steps between the least and the largest code."""
  if node.op_type != "Clip":
    return 255
  low, high = (int(graph.constants[name]) for name in node.input[1:])
  return high - low


def _stored(graph: onnx_graph.Graph, kernel: onnx.NodeProto) -> str:
  """Name the codes that a kernel is made of."""
  name: str = kernel.input[0]
  return graph.nodes[name].input[0] if name in graph.nodes else name


def _quantize_bias(
  graph: onnx_graph.Graph,
  node: onnx.NodeProto,
  source: onnx.NodeProto,
  kernel: onnx.NodeProto,
  allowed: float,
) -> bool:
  """Store a bias in steps of the sum; False where that would be too coarse.

  Half a step of the sum is much where a kernel has few codes: those of a
  channel are multiplied, as far as 8 bits go, so that its bias is nearly a
  whole number.
  """
  if len(node.input) < 3:
    return True
  stored = _stored(graph, kernel)
  highest = 255
  clip = graph.nodes.get(source.input[0])
  if clip is not None and clip.op_type == "Clip":
    highest = int(graph.constants[clip.input[2]])
  room = min(127, _PAIR // (2 * max(highest, 1)))
  codes = np.abs(graph.constants[stored].astype(np.float32))
  largest = np.maximum(codes.max(axis=(*range(1, codes.ndim),)), 1)
  steps = graph.constants[kernel.input[1]]
  bias = graph.constants[node.input[2]].astype(np.float64)
  factors = _best_factors(
    bias / (steps * graph.constants[source.input[1]]),
    np.maximum(room // largest, 1),
  )
  steps = (steps / factors).astype(np.float32)
  sums = steps * graph.constants[source.input[1]]
  whole = np.rint(bias / sums)
  if (
    np.abs(whole * sums - bias).max() > allowed
    or np.abs(whole).max() > _LARGEST
  ):
    return False
  node.input[2] = graph.add(
    "DequantizeLinear",
    graph.constant(whole, np.int32, "bias"),
    graph.constant(sums),
    axis=0,
  )
  if factors.max() > 1:
    by = graph.constant(factors.reshape(-1, *(1,) * (codes.ndim - 1)), np.int32)
    wide = graph.add("Cast", stored, to=onnx.TensorProto.INT32)
    wide = graph.add("Mul", wide, by)
    narrow = graph.add("Cast", wide, to=onnx.TensorProto.INT8)
    name = graph.constant(steps)
    node.input[1] = graph.add("DequantizeLinear", narrow, name, axis=0)
  return True


def _best_factors(bias: np.ndarray, highest: np.ndarray) -> np.ndarray:
  """Find what to multiply each channel by to round its bias least.

  Args:
    bias: in steps of the sum, shape (channels,).
    highest: the largest factor of each channel.

  Returns:
    Whole numbers from 1 on, shape (channels,).
  """
  tried = np.arange(1, int(highest.max()) + 1)[:, None]
  errors = np.abs(np.rint(bias * tried) / tried - bias)
  return np.where(tried <= highest, errors, np.inf).argmin(axis=0) + 1


def _unpacked(graph: onnx_graph.Graph, kernel: onnx.NodeProto) -> str:
  """Give a kernel in float by nodes that are run when a model is loaded."""
  steps = graph.constants[kernel.input[1]]
  stored = _stored(graph, kernel)
  shape = [1] * graph.constants[stored].ndim
  shape[helper.get_node_attr_value(kernel, "axis")] = -1
  codes = graph.add("Cast", stored, to=onnx.TensorProto.FLOAT)
  return graph.add("Mul", codes, graph.constant(steps.reshape(shape)))
