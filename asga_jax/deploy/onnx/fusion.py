"""Chooses which products onnxruntime runs in integers, and which in float.

A session as anyone opens it takes every product of a `DequantizeLinear` for one
that may run in integers: beside the products that are stored so, it quantizes
float kernels and biases of a convolution or a `Gemm` between a
`DequantizeLinear` and a `QuantizeLinear` on its own, and float inputs of a
matrix product whose kernel is a `DequantizeLinear`. So this operation stands in
front of products that are to run in integers alone. In front of all others the
same numbers are made by `Cast`, `Sub` and `Mul`, which no optimizer reads as a
quantization: for kernels once, as a model is loaded.

`QLinearConv` adds up whole numbers, so its bias is a whole number of steps of
the sum. That moves some codes by one. Where all codes have 8 bits and a sum has
many products, these are few, one code is 1/255 of the range, and what follows
does not carry it far: such convolutions run in integers. All others run in
float on the values of their codes, which is as exact as it gets; fewer bits
make the file smaller, not their arithmetic faster:

- those of fewer bits, where one code is much;
- those that add up few products, such as depthwise ones, of which one can move
  a result by several codes: MobileNetV2, so built, gives 2 images in 100 other
  classes, however few codes are moved at its start;
- those whose result is added to another before it is rounded, as at the end of
  a residual block, and those whose result stays float.

Convolutions without a window are products of matrices (`onnx_products`), which
onnxruntime takes in integers with a bias in float, exactly, at any bits. There
is no such form with a window: `ConvInteger` is several times slower than float.

On x86 processors with AVX2 but without VNNI onnxruntime adds pairs of products
in 16 bits: there, sums of 8-bit codes by 8-bit kernels may saturate. Those of
fewer bits on either side cannot.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from asga_jax.deploy.onnx import graph as onnx_graph

_PRODUCTS = ("Conv", "ConvTranspose", "MatMul")
# What moves codes and does not change them; a runtime moves quantization past.
_MOVES = ("Reshape", "Transpose")
# How far a bias may be moved, in steps of the codes that the result becomes;
# about the share of a channel's codes that moves by one.
BIAS_SHARE = 0.005
# Codes of 8 bits have more steps from the least to the largest than those of 7,
# also where an activation function bounds them.
_LEAST_STEPS = 2**7
# Of 8-bit kernels, the least of the largest absolute code: 7 bits have less.
_LEAST_CODE = 2**6
# In a sum.
_LEAST_PRODUCTS = 64
# Room for the sum beside the bias.
_LARGEST = 2**30


def fit_to_runtime(graph: onnx_graph.Graph) -> None:
  """Prepare each product for how its result is read; in place.

  A matrix product of codes runs in integers. A convolution of codes that
  nothing but codes are made of runs as `QLinearConv`: where it has a bias, only
  if all of these have 8 bits, its sums have many products, and a bias of whole
  steps of the sum moves no result by more than `BIAS_SHARE` of a code. In all
  others no operand is a `DequantizeLinear`.
  """
  graph.scope = ""
  users = graph.users()
  for name, node in list(graph.nodes.items()):
    if node.op_type not in _PRODUCTS:
      continue
    graph.scope = name
    if node.op_type == "MatMul":
      integer = all(_source(graph, operand) for operand in node.input)
    else:
      integer = _runs_as_qlinear_conv(graph, node, users)
    if not integer:
      for i in range(2):
        node.input[i] = _in_float(graph, node.input[i])


def _source(graph: onnx_graph.Graph, name: str) -> onnx.NodeProto | None:
  """Find the `DequantizeLinear` that a tensor comes from, if it does."""
  node = graph.nodes.get(name)
  while node is not None and node.op_type in _MOVES:
    node = graph.nodes.get(node.input[0])
  return node if _is_code(node) else None


def _is_code(node: onnx.NodeProto | None) -> bool:
  return node is not None and node.op_type == "DequantizeLinear"


def _runs_as_qlinear_conv(
  graph: onnx_graph.Graph,
  node: onnx.NodeProto,
  users: Mapping[str, Sequence[onnx.NodeProto]],
) -> bool:
  """Say whether a convolution may run in integers; rounds its bias if so."""
  source, kernel = (graph.nodes.get(name) for name in node.input[:2])
  readers = users[node.output[0]]
  if node.op_type != "Conv" or not (_is_code(source) and _is_code(kernel)):
    return False
  if [reader.op_type for reader in readers] != ["QuantizeLinear"]:
    return False
  if len(node.input) == 2:
    return True
  assert source is not None
  assert kernel is not None
  (result,) = readers
  return (
    _has_8_bits(graph, _before(graph, source))
    and _has_8_bits(graph, users[result.output[0]][0])
    and _is_fine(graph.constants[_stored(graph, kernel)])
    and _round_bias(graph, node, source, kernel, result)
  )


def _before(
  graph: onnx_graph.Graph, node: onnx.NodeProto
) -> onnx.NodeProto | None:
  """Find what makes the codes that a node reads."""
  before = graph.nodes.get(node.input[0])
  if before is not None and before.op_type == "Transpose":
    return graph.nodes.get(before.input[0])
  return before


def _has_8_bits(graph: onnx_graph.Graph, node: onnx.NodeProto | None) -> bool:
  """Say whether codes have 8 bits, of the node that may bound them."""
  if node is None or node.op_type != "Clip":
    return True
  low, high = (int(graph.constants[name]) for name in node.input[1:])
  return high - low >= _LEAST_STEPS


def _is_fine(codes: np.ndarray) -> bool:
  """Say whether a kernel has 8 bits and makes sums of many products."""
  largest = np.abs(codes.astype(np.int32)).max(initial=0)
  return largest >= _LEAST_CODE and codes[0].size >= _LEAST_PRODUCTS


def _stored(graph: onnx_graph.Graph, kernel: onnx.NodeProto) -> str:
  """Name the codes that a kernel is made of."""
  name: str = kernel.input[0]
  return graph.nodes[name].input[0] if name in graph.nodes else name


def _round_bias(
  graph: onnx_graph.Graph,
  node: onnx.NodeProto,
  source: onnx.NodeProto,
  kernel: onnx.NodeProto,
  result: onnx.NodeProto,
) -> bool:
  """Store a bias in steps of the sum; False where that would be too coarse."""
  steps = graph.constants[kernel.input[1]] * graph.constants[source.input[1]]
  bias = graph.constants[node.input[2]].astype(np.float64)
  if not steps.all():
    return False
  whole = np.rint(bias / steps)
  moved = np.abs(whole * steps - bias) / graph.constants[result.input[1]]
  if moved.max() > BIAS_SHARE or np.abs(whole).max() > _LARGEST:
    return False
  node.input[2] = graph.add(
    "DequantizeLinear",
    graph.constant(whole, np.int32, "bias"),
    graph.constant(steps),
    axis=0,
  )
  return True


def _in_float(graph: onnx_graph.Graph, name: str) -> str:
  """Give the same numbers by nodes that no optimizer takes for codes."""
  if _source(graph, name) is None:
    return name
  node = graph.nodes[name]
  if node.op_type in _MOVES:
    moved = _in_float(graph, node.input[0])
    settings = {x.name: helper.get_attribute_value(x) for x in node.attribute}
    return graph.add(node.op_type, moved, *node.input[1:], **settings)
  is_kernel = bool(node.attribute)  # it has an axis
  codes = _stored(graph, node) if is_kernel else node.input[0]
  values = graph.add("Cast", codes, to=onnx.TensorProto.FLOAT)
  step = graph.constants[node.input[1]]
  if is_kernel:
    shape = [1] * graph.constants[codes].ndim
    shape[helper.get_node_attr_value(node, "axis")] = -1
    step = step.reshape(shape)
  elif np.any(zero := graph.constants[node.input[2]]):
    values = graph.add("Sub", values, graph.constant(zero, np.float32))
  return graph.add("Mul", values, graph.constant(step))
