"""Reads a traced network, equation by equation, into an ONNX graph."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from asga_jax import checks
from asga_jax.deploy import integer
from asga_jax.deploy.onnx import loops as onnx_loops
from asga_jax.deploy.onnx import ops as onnx_ops
from asga_jax.deploy.onnx import rewritten as onnx_rewritten
from asga_jax.deploy.onnx import shapes as onnx_shapes
from asga_jax.deploy.onnx import trace as onnx_trace
from asga_jax.deploy.onnx.values import (
  Builder,
  ExportError,
  Product,
  Tensor,
  Value,
  Weight,
)
from asga_jax.network import program
from asga_jax.quantization import bit_choice, layers, quantizers

# Where an operation that is a call keeps what it calls.
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALLS = frozenset(
  [
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat2",
  ]
)


class Reader:
  """Builds the graph of a jaxpr; constants are computed on the way."""

  def __init__(self, builder: Builder, traced: onnx_trace.Traced):
    """Take where to build, and the network's quantized layers."""
    self._builder = builder
    self._layers = traced.layers
    # The kernels met, by path: what is stored.
    self.kernels: dict[str, Weight | np.ndarray] = {}

  def read(
    self,
    jaxpr: Any,
    constants: Sequence[Any],
    arguments: Sequence[Value],
    outer: str = "",
  ) -> list[Value]:
    """Build a jaxpr on values; gives its results.

    Raises:
      ExportError: an operation that has no counterpart; it names the layer.
    """
    known: dict[Any, Value] = {
      **dict(zip(jaxpr.constvars, map(as_array, constants), strict=True)),
      **dict(zip(jaxpr.invars, arguments, strict=True)),
    }
    equations = _needed(jaxpr)
    uses = collections.Counter(
      variable
      for equation in equations
      for variable in equation.invars
      if not isinstance(variable, core.Literal)
    )
    uses.update(v for v in jaxpr.outvars if not isinstance(v, core.Literal))

    def value_of(variable: Any) -> Value:
      if isinstance(variable, core.Literal):
        aval: Any = variable.aval
        return np.asarray(variable.val, aval.dtype)
      value = known[variable]
      if uses[variable] > 1 and isinstance(value, Product):
        # Each reader would else build a product of its own.
        value = known[variable] = self._builder.tensor(value)
      return value

    for equation in equations:
      scope = program.scope(equation, outer)
      values = [value_of(variable) for variable in equation.invars]
      self._builder.graph.scope = scope
      try:
        results = self._apply(equation, values, scope)
      # What is not understood fails in JAX or in NumPy as well.
      except Exception as error:
        if isinstance(error, ExportError) and error.operation:
          raise
        name = equation.primitive.name
        reason = checks.reason(error)
        told = ExportError(
          f"the operation {name!r} of layer {scope or '(the network)'!r} has no"
          f" counterpart in ONNX here: {reason}"
        )
        told.operation = name
        raise told from error
      known.update(zip(equation.outvars, results, strict=True))
    return [value_of(variable) for variable in jaxpr.outvars]

  def _apply(
    self, equation: Any, values: list[Value], scope: str
  ) -> Sequence[Value]:
    name = equation.primitive.name
    if name in _CALLS:
      body = next(equation.params[k] for k in _BODIES if k in equation.params)
      jaxpr, constants = (
        getattr(body, "jaxpr", body),
        getattr(body, "consts", ()),
      )
      return self.read(jaxpr, constants, values, scope)
    avals = [variable.aval for variable in equation.outvars]
    if equation.primitive is program.mark:
      told = equation.params
      return [self._quantize(values[0], told["path"], told["operand"])]
    constant = name != "dim_as_value" and all(
      isinstance(value, np.ndarray) for value in values
    )
    if constant and all(
      isinstance(size, int) for aval in avals for size in aval.shape
    ):
      found = equation.primitive.bind(*values, **equation.params)
      many = equation.primitive.multiple_results
      return [as_array(x) for x in (found if many else [found])]
    for aval in avals:
      _check_dtype(aval, cast=name == "convert_element_type")
    if all(onnx_shapes.is_empty(aval) for aval in avals):
      return [self._builder.plain("", x.shape, x.dtype) for x in avals]
    if name in onnx_ops.MOVES and isinstance(values[0], Weight):
      return [onnx_ops.apply_to_weight(values[0], equation)]
    if name in onnx_loops.LOOPS:
      return onnx_loops.LOOPS[name](
        equation,
        values,
        functools.partial(self.read, outer=scope),
        functools.partial(self._write, scope=scope),
      )
    written = onnx_rewritten.written(equation)
    if written is not None:
      inputs = [variable.aval for variable in equation.invars]
      return self._write(written, values, inputs, scope)
    if name in onnx_shapes.SEVERAL:
      several = onnx_shapes.SEVERAL[name]
      return several(self._builder, values, equation.params, avals)
    if name not in onnx_ops.RULES:
      raise ExportError("there is none, or it is not written here")
    rule = onnx_ops.RULES[name]
    return [rule(self._builder, values, equation.params, avals[0])]

  def _write(
    self,
    function: Callable[..., Any],
    values: Sequence[Value],
    avals: Sequence[Any],
    scope: str,
  ) -> list[Value]:
    """Build a function of JAX on values."""
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    # Its constants are its own, whatever the caller's promotions are.
    with (
      jax.numpy_dtype_promotion("standard"),
      jax.numpy_rank_promotion("allow"),
    ):
      traced = jax.make_jaxpr(function)(*shapes)
    return self.read(traced.jaxpr, traced.consts, values, scope)

  def _quantize(self, value: Value, path: str, operand: str) -> Value:
    layer = self._layers.get(path)
    if layer is None:
      return value  # float
    choice: bit_choice.BitChoice = getattr(layer, operand)
    (bits,) = choice.candidates()
    is_kernel = operand == "weight" and layer.has_kernel
    if is_kernel and not isinstance(value, np.ndarray):
      raise ExportError(
        f"the kernel of layer {path!r} depends on the input; expected one that"
        " is known before the network runs"
      )
    result = value
    if bits < quantizers.FLOAT_BITS:
      if is_kernel:
        result = _kernel_codes(path, layer, value)
      else:
        result = _quantize_activation(self._builder, value, choice)
    if is_kernel:
      assert isinstance(result, np.ndarray | Weight)
      self.kernels[path] = result
    return result


def _needed(jaxpr: Any) -> list[Any]:
  """List the equations that the results depend on."""
  wanted = {id(variable) for variable in jaxpr.outvars}
  found = []
  for equation in reversed(jaxpr.eqns):
    if any(id(variable) in wanted for variable in equation.outvars):
      wanted.update(map(id, equation.invars))
      found.append(equation)
  return found[::-1]


def _check_dtype(aval: Any, *, cast: bool) -> None:
  """Refuse numbers that onnxruntime has few or no kernels for on a CPU."""
  if jax.dtypes.issubdtype(aval.dtype, np.floating) and aval.dtype.itemsize < 4:
    raise ExportError(
      f"it computes in {aval.dtype}; expected float32 (layers take dtype=)"
    )
  # What asks for complex numbers says more than the cast to them.
  if jax.dtypes.issubdtype(aval.dtype, np.complexfloating) and not cast:
    raise ExportError(
      f"it computes in {aval.dtype}; expected real and imaginary parts apart"
    )


def as_array(value: Any) -> Any:
  """Give a constant as a NumPy array; random keys stay as they are."""
  if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
    return value
  return np.asarray(value)


def _kernel_codes(
  path: str, layer: layers.QuantizedProduct, kernel: Any
) -> Weight:
  """Give the kernel that a layer multiplies by as whole numbers and steps."""
  made = integer.integer_layer(path, layer, kernel)
  assert made.codes is not None
  steps = np.broadcast_to(made.weight_step, made.codes.shape)
  return Weight(made.codes, steps, made.weight_bits, made.offset, path)


def _quantize_activation(
  builder: Builder, value: Value, choice: bit_choice.BitChoice
) -> Tensor:
  """Round a tensor to unsigned codes of 8 bits, of which some may be unused.

  Codes are bounded as whole numbers: what is below a runtime's own bounds is
  one cheap node on bytes, and the product before it stays a product of
  integers. The bounds of a clipped value are bounds of its codes as well.
  """
  base, *clipped = onnx_ops.unclipped(value)
  tensor = builder.tensor(base)
  step = np.float32(np.maximum(choice.steps()[0], quantizers.SMALLEST_STEP))
  grids = choice.grids()
  lower, upper = float(grids.lower[0]), float(grids.upper[0])
  zero = -int(lower)
  low, high = (
    int(np.clip(np.rint(np.float32(bound) / step), lower, upper)) + zero
    for bound in clipped
  )
  constant = builder.graph.constant
  scale = (constant(step), constant(zero, np.uint8))
  name = builder.graph.add("QuantizeLinear", tensor.name, *scale)
  if (low, high) != (0, 255):
    bounds = [constant(bound, np.uint8) for bound in (low, high)]
    name = builder.graph.add("Clip", name, *bounds)
  name = builder.graph.add("DequantizeLinear", name, *scale)
  return Tensor(name, tensor.shape, tensor.dtype, tensor.axes)
