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
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import onnx
import tabulate
from flax import nnx
from onnx import helper

from asga_jax import checks, conversion, files
from asga_jax import policy as policy_lib
from asga_jax.deploy.onnx import fusion as onnx_fusion
from asga_jax.deploy.onnx import graph as onnx_graph
from asga_jax.deploy.onnx import layer as onnx_layer
from asga_jax.deploy.onnx import reader as onnx_reader
from asga_jax.deploy.onnx import trace as onnx_trace
from asga_jax.deploy.onnx import trial as onnx_trial
from asga_jax.deploy.onnx import values as onnx_values
from asga_jax.network import arguments, examples
from asga_jax.quantization import layers, remembered
from asga_jax.xla import promotion

INPUT, OUTPUT = "image", "logits"
POLICY_KEY = "asga_jax.policy"
STORAGE_KEY = "asga_jax.storage"


@promotion.usual()
def export_onnx(
  model: nnx.Module,
  example_input: Any,
  path: str | os.PathLike[str] | None = None,
  *,
  policy: policy_lib.Policy | None = None,
  name: str = "network",
  method: str = "__call__",
) -> onnx.ModelProto:
  """Convert a network to ONNX, for batches of any size.

  It is exported in evaluation mode. Its metadata hold the policy's JSON under
  "asga_jax.policy", and under "asga_jax.storage" a JSON object of layer path ->
  bits, bits in the file and bytes in the file of its weights. A plain
  `onnxruntime.InferenceSession(path)` opens it, at any level of graph
  optimization.

  Args:
    model: any Flax NNX module: float, from `with_policy`, or searchable where
      a policy is given; it is not changed.
    example_input: what the model is called on, as `searchable` takes it: an
      array of shape (batch, ...), a tuple of arguments in order, or a dict of
      them by name. Or the shape of one input, without the batch; it then is of
      the type of the example that the model was made searchable with, else
      float32.
    path: where to write it; None to only return it. The file appears whole,
      once the model has passed ONNX's checker and has given on the example what
      the network gives, or not at all.
    policy: for the layers of a searchable network.
    name: of the graph.
    method: the method of the model that is called.

  Returns:
    The model. One array alone is its input `image`; several are named as the
    method names them. One output is `logits`, several are named by their keys.

  Raises:
    ExportError: an operation without a counterpart; it names the operation and
      the layer. Or a network with several candidates and no policy.
    ValueError: a policy for other layers, or a wrong example.
    OSError: the path cannot be written; found before the conversion.
  """
  arguments.check_module(model)
  arguments.check_method(model, method)
  checks.text("name", name, "the name of the graph, a str")
  if policy is not None:
    policy_lib.check(policy)
  example = remembered.example_of(model, example_input)
  if path is not None:
    files.check_writable(path)
  if policy is not None:
    model = conversion.with_policy(model, policy)
  _check_fixed(model)
  try:
    traced = onnx_trace.trace(model, example, method)
  except (
    TypeError,
    ValueError,
    jax.errors.InconclusiveDimensionOperation,
  ) as error:
    reason = checks.reason(error)
    raise onnx_values.ExportError(
      f"{type(model).__name__}.{method} does not run on a batch of any size of"
      f" {example.describe()}: {reason}"
    ) from error
  graph = onnx_graph.Graph()
  # Taken before all other names.
  inputs = [graph.name(x) for x in example.names(getattr(model, method), INPUT)]
  outputs = [graph.name(x) for x in examples.leaf_names(traced.results, OUTPUT)]
  if len(outputs) == 1:
    outputs = [OUTPUT]
  read = traced.jaxpr.jaxpr.invars[len(traced.values) :]
  varying = example.varying().index(True)
  builder = onnx_values.Builder(graph, traced.batch, inputs[varying])
  given = [
    builder.plain(name, variable.aval.shape, variable.aval.dtype)
    for name, variable in zip(inputs, read, strict=True)
  ]
  reader = onnx_reader.Reader(builder, traced)
  results = reader.read(
    traced.jaxpr.jaxpr,
    traced.jaxpr.consts,
    [*map(onnx_reader.as_array, traced.values), *given],
  )
  given_back = dict(zip(outputs, traced.jaxpr.out_avals, strict=True))
  _check_outputs(given_back)
  named = [
    (builder.ordered(result), _value_info(*output))
    for result, output in zip(results, given_back.items(), strict=True)
  ]
  onnx_fusion.fit_to_runtime(graph)
  storage = _storage(traced.layers, reader.kernels)
  metadata = {STORAGE_KEY: json.dumps(storage)}
  if policy is not None:
    metadata[POLICY_KEY] = policy_lib.to_json(policy)
  made = graph.model(
    [
      _value_info(name, variable.aval)
      for name, variable in zip(inputs, read, strict=True)
    ],
    named,
    name=name,
    metadata=metadata,
  )
  shapes = {name: aval.shape for name, aval in given_back.items()}
  onnx_trial.check(made, model, method, example, inputs, shapes)
  if path is not None:
    files.write_bytes_atomic(path, made.SerializeToString())
  return made


def _check_outputs(outputs: Mapping[str, Any]) -> None:
  """Refuse what is no array of numbers, or has no elements."""
  if not outputs:
    raise onnx_values.ExportError(
      "the network gives no array; expected one or more."
    )
  for name, aval in outputs.items():
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
      raise onnx_values.ExportError(
        f"the network gives {aval.dtype} as {name!r}; expected an array of"
        " numbers."
      )
    if 0 in aval.shape:
      raise onnx_values.ExportError(
        f"the network gives an empty output {name!r}, of shape {aval.shape};"
        " expected elements."
      )


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
