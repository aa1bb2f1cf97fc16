"""The jaxpr of a network for any batch, as ONNX files are read from it."""

from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.extend import core

from asga_jax.network import examples, program
from asga_jax.quantization import layers
from asga_jax.xla import lowering


class Traced(NamedTuple):
  """What a network computes."""

  jaxpr: core.ClosedJaxpr
  values: tuple[Any, ...]  # of its first inputs, the network's variables
  batch: Any  # the symbolic size
  # The quantized layers, by the paths that `program.mark` names.
  layers: dict[str, layers.QuantizedProduct]
  # What it returns: a pytree of shapes and dtypes.
  results: Any


def trace(
  model: nnx.Module, example: examples.Example, method: str = "__call__"
) -> Traced:
  """Trace a network in evaluation mode, for any batch.

  Args:
    model: float, or with one candidate for each tensor; it is not changed.
    example: what the method takes; shapes are enough.
    method: the method to trace.

  Returns:
    The jaxpr, with `program.mark` where an operand is quantized.

  Raises:
    ValueError: a network that needs to know its batch, or the wrong shape.
  """
  copy = nnx.clone(model)
  copy.eval()
  lowering.use_lax_convolutions(copy)
  (batch,) = jax.export.symbolic_shape("batch")
  traced = program.trace(copy, example.shapes(batch), method=method)
  return Traced(
    traced.jaxpr,
    traced.values,
    batch,
    layers.quantized_layers(model),
    traced.results,
  )
