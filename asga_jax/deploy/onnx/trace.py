"""The jaxpr of a network whose quantizers and modules can be seen in it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from asga_jax.network import calls as tracing
from asga_jax.network import kinds as layer_kinds
from asga_jax.quantization import layers
from asga_jax.xla import lowering

# Stands where an operand of a product is quantized; it is never run.
quantize = core.Primitive("asga_quantize")
quantize.def_abstract_eval(lambda aval, **_: aval)
# What the names of scopes begin with that are paths of modules.
SCOPE = "@"


class Traced(NamedTuple):
  """What a network computes."""

  jaxpr: core.ClosedJaxpr
  batch: Any  # the symbolic size
  # The quantized layers, by the paths that `quantize` names.
  layers: dict[str, layers.QuantLayer]


def trace(
  model: nnx.Module, input_shape: tuple[int, ...], method: str = "__call__"
) -> Traced:
  """Trace a network in evaluation mode, for any batch.

  Args:
    model: float, or with one candidate for each tensor; it is not changed.
    input_shape: of one input, without the batch.
    method: the method to trace.

  Returns:
    The jaxpr, with `quantize` where an operand is quantized.

  Raises:
    ValueError: a network that needs to know its batch, or the wrong shape.
  """
  copy = nnx.clone(model)
  copy.eval()
  lowering.use_lax_convolutions(copy)
  quantized = layers.quantized_layers(copy)
  for path, layer in quantized.items():
    _mark(layer, path)
  for keys, module in nnx.iter_modules(copy):
    _name(module, tracing.path_name(keys))
  graphdef, state = nnx.split(copy)

  def run(images):
    return getattr(nnx.merge(graphdef, state, copy=True), method)(images)

  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, *input_shape), jnp.float32)
  return Traced(jax.make_jaxpr(run)(images), batch, quantized)


def _mark(layer: layers.QuantLayer, path: str) -> None:
  """Let a layer show where it quantizes, instead of doing so."""
  kind = layer_kinds.kind_of(layer)
  assert kind is not None
  product = layer.product

  def marked(first, second, *args: Any, **settings: Any):
    first = quantize.bind(first, path=path, operand="activation")
    second = quantize.bind(second, path=path, operand="weight")
    return product(first, second, *args, **settings)

  layer_kinds.set_product(layer, kind, marked)


def _name(module: Any, path: str) -> None:
  """Let a module call itself in a scope of its path."""
  kind = type(module)
  if not path or not callable(module):
    return

  def call(self, *args: Any, **settings: Any):
    with jax.named_scope(SCOPE + path):
      return kind.__call__(self, *args, **settings)

  module.__class__ = type(kind.__name__, (kind,), {"__call__": call})


def scope(equation: core.JaxprEqn, outer: str) -> str:
  """Give the path of the innermost module that an equation comes from."""
  names = [part.name for part in equation.source_info.name_stack.stack]
  paths = [name for name in names if name.startswith(SCOPE)]
  return paths[-1].removeprefix(SCOPE) if paths else outer
