"""A network, float or fixed by a policy, as an ONNX model.

A quantized operand is `QuantizeLinear`, `Clip` on the codes where these have
fewer than 8 bits, and `DequantizeLinear`, or the same by `Cast`, `Sub` and
`Mul` where a runtime is to multiply in float (`onnx_fusion`); a quantized
kernel is stored in the narrowest of int2, int4 and int8 that holds its bits.
Batch norm becomes part of the product before it: its scale of the steps, its
shift of the bias.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
import tabulate
from flax import nnx
from onnx import helper

from asga_jax import conversion, files
from asga_jax import policy as policy_lib
from asga_jax.deploy.onnx import fusion as onnx_fusion
from asga_jax.deploy.onnx import graph as onnx_graph
from asga_jax.deploy.onnx import layer as onnx_layer
from asga_jax.deploy.onnx import reader as onnx_reader
from asga_jax.deploy.onnx import trace as onnx_trace
from asga_jax.deploy.onnx import values as onnx_values
from asga_jax.network import arguments, examples
from asga_jax.quantization import layers, promotion, remembered

INPUT, OUTPUT = "image", "logits"
POLICY_KEY = "asga_jax.policy"
STORAGE_KEY = "asga_jax.storage"
_TRIED = (1, 9)  # batches that every new model is run on
# What a file may give other than the network, in shares of its length.
_MOST_APART = 0.05


@promotion.usual()
def export_onnx(
  model: nnx.Module,
  input_shape: Sequence[int],
  path: str | os.PathLike[str] | None = None,
  *,
  policy: policy_lib.Policy | None = None,
  name: str = "network",
  method: str = "__call__",
) -> onnx.ModelProto:
  """Convert a network to ONNX, for batches of any size.

  It is exported in evaluation mode. The model reads `image`, of shape (batch,
  *input_shape) and of the type of the example that it was made searchable with
  (else float32), and writes `logits`. Its metadata hold the policy's
  JSON under "asga_jax.policy", and under "asga_jax.storage" a JSON object of
  layer path -> bits, bits in the file and bytes in the file of its weights.
  A plain `onnxruntime.InferenceSession(path)` opens it, at any level of graph
  optimization.

  Args:
    model: any Flax NNX module of one input and one output: float, from
      `with_policy`, or searchable where a policy is given; it is not changed.
    input_shape: of one input, without the batch.
    path: where to write it; None to only return it. The file appears whole,
      once the model has passed ONNX's checker and has run, or not at all.
    policy: for the layers of a searchable network.
    name: of the graph.
    method: the method of the model that is called.

  Returns:
    The model.

  Raises:
    ExportError: an operation without a counterpart; it names the operation and
      the layer. Or a network with several candidates and no policy.
    ValueError: a policy for other layers, or a wrong input shape.
    OSError: the path cannot be written; found before the conversion.
  """
  arguments.check_module(model)
  if not callable(getattr(model, str(method), None)):
    raise ValueError(
      f"method={method!r}; expected the name of a method of model"
      f" ({type(model).__name__})."
    )
  if not isinstance(name, str):
    raise ValueError(f"name={name!r}; expected the name of the graph, a str.")
  shape = arguments.check_shape(input_shape)
  if path is not None:
    files.check_writable(path)
  if policy is not None:
    model = conversion.with_policy(model, policy)
  _check_fixed(model)
  # Two, since a size of one may stand for any.
  image: Any = jax.ShapeDtypeStruct(
    (2, *shape), remembered.input_dtype(model, len(shape))
  )
  try:
    traced = onnx_trace.trace(model, examples.Example(image), method)
  except (
    TypeError,
    ValueError,
    jax.errors.InconclusiveDimensionOperation,
  ) as error:
    reason = " ".join(str(error).split())[:600]
    raise onnx_values.ExportError(
      f"{type(model).__name__}.{method} does not run on a batch of any size of"
      f" inputs of {image.dtype} and the shape {shape}: {reason}"
    ) from error
  graph = onnx_graph.Graph()
  builder = onnx_values.Builder(graph, traced.batch, INPUT)
  read = traced.jaxpr.jaxpr.invars[-1]
  given = builder.plain(INPUT, read.aval.shape, read.aval.dtype)
  reader = onnx_reader.Reader(builder, traced)
  results = reader.read(
    traced.jaxpr.jaxpr,
    traced.jaxpr.consts,
    [*map(onnx_reader.as_array, traced.values), given],
  )
  if len(results) != 1:
    raise onnx_values.ExportError(
      f"the network has {len(results)} outputs; expected one."
    )
  (aval,) = traced.jaxpr.out_avals
  if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
    raise onnx_values.ExportError(
      f"the network gives {aval.dtype}; expected an array of numbers."
    )
  if 0 in aval.shape:
    raise onnx_values.ExportError(
      f"the network gives an empty output, of shape {aval.shape}; expected"
      " elements."
    )
  output = builder.ordered(results[0])
  onnx_fusion.fit_to_runtime(graph)
  storage = _storage(traced.layers, reader.kernels)
  metadata = {STORAGE_KEY: json.dumps(storage)}
  if policy is not None:
    metadata[POLICY_KEY] = policy_lib.to_json(policy)
  made = graph.model(
    [_value_info(INPUT, read.aval)],
    {output: _value_info(OUTPUT, aval)},
    name=name,
    metadata=metadata,
  )
  try:
    _check(
      made,
      shape,
      np.dtype(read.aval.dtype),
      aval.shape,
      _in_jax(model, method),
    )
  except onnx_values.ExportError:
    raise
  # Those of ONNX and of its runtime have no base in common.
  except Exception as error:
    raise onnx_values.ExportError(_told(error)) from error
  if path is not None:
    files.write_bytes_atomic(path, made.SerializeToString())
  return made


def _in_jax(
  model: nnx.Module, method: str
) -> Callable[[np.ndarray], np.ndarray]:
  copy = nnx.clone(model)
  copy.eval()
  graphdef, state = nnx.split(copy)

  @jax.jit
  def run(state, images):
    model = nnx.merge(graphdef, state, copy=True)
    (output,) = jax.tree.leaves(getattr(model, method)(images))
    return output

  return lambda images: np.asarray(run(state, images))


def _check_fixed(model: nnx.Module) -> None:
  for path, layer in layers.quantized_layers(model).items():
    for choice in (layer.weight, layer.activation):
      if len(choice.candidates()) > 1:
        raise onnx_values.ExportError(
          f"layer {path!r} has the candidates {choice.candidates()}; expected"
          " a policy, or a network fixed by one (asga_jax.with_policy)."
        )


def _value_info(name: str, aval: Any) -> onnx.ValueInfoProto:
  sizes = [size if isinstance(size, int) else "batch" for size in aval.shape]
  kind = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
  return helper.make_tensor_value_info(name, kind, sizes)


def _storage(
  quantized: Mapping[str, layers.QuantizedProduct], kernels: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
  """Say how the weights of every layer with a choice of bits are stored."""
  found = {}
  for path, kernel in kernels.items():
    (weight_bits,) = quantized[path].weight.candidates()
    (activation_bits,) = quantized[path].activation.candidates()
    stored = onnx_layer.weight_container(weight_bits)
    size = int(np.prod(kernel.shape))
    found[path] = {
      "weight_bits": weight_bits,
      "stored_bits": stored,
      "weight_bytes": -(-size * stored // 8),
      "activation_bits": activation_bits,
    }
  return found


def _check(
  made: onnx.ModelProto,
  shape: Sequence[int],
  dtype: np.dtype,
  output_shape: Sequence[int],
  run: Callable[[np.ndarray], np.ndarray],
) -> None:
  """Check a model, and compare what it gives with what the network gives."""
  onnx.checker.check_model(made, full_check=True)
  session = onnx_layer.open_session(made)
  random = np.random.default_rng(0)
  for batch in _TRIED:
    images = random.standard_normal((batch, *shape), np.float32)
    if dtype.kind != "f":
      images = np.abs(np.rint(images))
    images = images.astype(dtype)
    (found,) = session.run([OUTPUT], {INPUT: images})
    if len(found.shape) != len(output_shape) or any(
      isinstance(size, int) and size != whole
      for whole, size in zip(found.shape, output_shape, strict=True)
    ):
      raise onnx_values.ExportError(
        f"onnxruntime gives the shape {found.shape} for a batch of {batch};"
        f" expected {tuple(output_shape)}."
      )
  apart = _distance(found, run(images))
  if not apart <= _MOST_APART:
    raise onnx_values.ExportError(
      f"onnxruntime gives what is {apart:.1%} off what the network gives in JAX"
      f" (median of {len(images)} random inputs); expected at most"
      f" {_MOST_APART:.0%}. Please report it with the network."
    )


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
  """Give the median of an example's difference, in shares of what was wanted.

  A value between two codes may fall on either side, and a network of few bits
  carries that on: for one example, not for most.
  """
  equal = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
  first, second = (
    np.where(equal, 0, x).astype(np.float64).reshape(len(np.atleast_1d(x)), -1)
    for x in (found, wanted)
  )
  scale = np.linalg.norm(second, axis=1)
  apart = np.linalg.norm(first - second, axis=1)
  tiny = float(np.finfo(np.float32).tiny)
  return float(np.median(apart / np.maximum(scale, tiny)))


def _told(error: Exception) -> str:
  """Say in a line what ONNX or its runtime has against a file."""
  text = " ".join(str(error).split())
  node = re.search(r"node (?:with )?name:? ?'?([^\s')]+)", text)
  at = f" at {node[1]!r} (layer and operation)" if node else ""
  return f"the file would not run{at}: {text}"


def weight_bytes(model: onnx.ModelProto) -> int:
  """Count the bytes of all that a model stores: kernels, steps, biases."""
  return sum(
    len(stored.raw_data) or stored.ByteSize()
    for stored in model.graph.initializer
  )


def format_storage(model: onnx.ModelProto) -> str:
  """Lay out how the weights of every layer are stored, one line each.

  Args:
    model: from `export_onnx`.

  Returns:
    The lines, joined by newlines; a layer whose bits no type has is marked.
  """
  rows = [("layer", "weight bits", "stored as", "bytes", "activation bits", "")]
  stored = {p.key: p.value for p in model.metadata_props}[STORAGE_KEY]
  for path, entry in json.loads(stored).items():
    bits, width = entry["weight_bits"], entry["stored_bits"]
    kind = "float32" if width == policy_lib.FLOAT_BITS else f"int{width}"
    activation = entry["activation_bits"]
    marks = [f"{bits} bits in int{width}"] if width != bits else []
    if activation < 8:
      marks.append(f"{activation} bits in uint8")
    rows.append(
      (
        path,
        str(bits),
        kind,
        str(entry["weight_bytes"]),
        str(activation),
        ", ".join(marks),
      )
    )
  return tabulate.tabulate(
    rows,
    tablefmt="plain",
    disable_numparse=True,
    colalign=("left", *("right",) * 4, "left"),
  )
