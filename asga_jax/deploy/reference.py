"""A fixed network that multiplies integers: the reference for runtimes."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.deploy import folding, integer
from asga_jax.network import attention
from asga_jax.network import calls as tracing
from asga_jax.network import kinds as layer_kinds
from asga_jax.quantization import layers

ARITHMETICS = ("int32", "float32")
# Whole numbers below these are exact.
_LIMITS = {"int32": 2**31, "float32": 2**24}


class Accumulation(NamedTuple):
  """One product: the codes of the input and the sums, both int32."""

  path: str
  # Of a product of two activations, those of its second operand after them.
  codes: tuple[jax.Array, ...]
  accumulator: jax.Array


Observer = Callable[[Accumulation], None]


def integer_forward(
  model: nnx.Module,
  *,
  folds: Mapping[str, folding.Fold] | None = None,
  arithmetic: str = "int32",
  observer: Observer | None = None,
) -> nnx.Module:
  """Make a network compute with integers, in evaluation mode.

  Each layer rounds its input to codes, adds up products of codes and
  `integers` exactly, and multiplies the sum by the steps in float32. Layers
  with a float operand stay as they are. All else is the network's own.

  Args:
    model: fixed by a policy; it is not changed.
    folds: from `folding.find_folds`; these layers give the output of their
      norm, which is skipped. None: norms stay as they are.
    arithmetic: 'int32', or 'float32', which on a CPU is 5 to 30 times faster
      and takes float32 sums of whole numbers where those stay below 2^24 and
      so are exact; else two such sums, of halves of the kernel, or int32.
    observer: told of every product as it is computed; call the network outside
      of `jax.jit` then.

  Returns:
    A copy, called as the model.

  Raises:
    ValueError: unknown arithmetic, sums that could leave int32, or see
      `integer.integer_layers`.
  """
  if arithmetic not in ARITHMETICS:
    raise ValueError(
      f"arithmetic is {arithmetic!r}; expected one of {ARITHMETICS}."
    )
  found = integer.integer_layers(model)
  folds = folds or {}
  skipped = {fold.norm for fold in folds.values()}

  def replace(path, node):
    name = tracing.path_name(path)
    if name in skipped:
      return _Skipped()
    if isinstance(node, attention.Attention):
      return _IntegerAttention(
        node,
        {part: found.get(f"{name}/{part}") for part in ("qk", "pv")},
        observer,
      )
    layer = found.get(name)
    if layer is None or layer.codes is None or not layer.is_integer:
      return node
    if layer.largest_accumulator() >= _LIMITS["int32"]:
      raise ValueError(
        f"layer {name!r} may sum to {layer.largest_accumulator()}; expected"
        " less than 2^31."
      )
    return _INTEGER[type(node)](
      node,
      layer,
      folds.get(name),
      _exact_arithmetic(layer) if arithmetic == "float32" else arithmetic,
      observer,
    )

  copy: Any = nnx.recursive_map(replace, nnx.clone(model))
  copy.eval()
  return copy


def accumulators(
  model: nnx.Module, *args: Any, method: str = "__call__", **settings: Any
) -> tuple[Any, list[Accumulation]]:
  """Run the integer network and list its products.

  Args:
    model: fixed by a policy; it is not changed.
    *args: what the method takes.
    method: the method to run.
    **settings: of `integer_forward`.

  Returns:
    What the method returned, and the products in call order.
  """
  found: list[Accumulation] = []
  made = integer_forward(model, observer=found.append, **settings)
  return getattr(made, method)(*args), found


def _exact_arithmetic(layer: integer.IntegerLayer) -> str:
  """Name the fastest arithmetic in which all sums of a layer are exact."""
  if layer.largest_accumulator() < _LIMITS["float32"]:
    return "float32"
  high, low = integer.halves(layer.integers)
  # A sum of multiples of 16 is as exact as that of what they are multiples of.
  sums = (layer.largest_accumulator(high / 16), layer.largest_accumulator(low))
  return "halves" if max(sums) < _LIMITS["float32"] else "int32"


class _Skipped(nnx.Module):
  """Stands for a norm that the layers before it compute."""

  def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    del args, kwargs
    return x


class _Integer:
  """What all integer layers share; `kernel` holds the integers."""

  product: Any
  integer_product: Any
  bias: Any
  mask: Any

  def __init__(
    self,
    node: Any,
    layer: integer.IntegerLayer,
    fold: folding.Fold | None,
    arithmetic: str,
    observer: Observer | None,
  ):
    layer_kinds.take_over(self, node, "kernel", "mask")  # type: ignore[arg-type]
    self.mask = None  # the integers have it
    self.kernel = nnx.Param(jnp.asarray(layer.integers))
    self.path = layer.path
    self.grid = layer.activation
    self.arithmetic = arithmetic
    self.observer = observer
    self.outputs = layer.outputs
    if fold is None:
      self.multiplier = nnx.Variable(
        jnp.asarray(layer.integer_step * layer.activation.step)
      )
      self.offset = None
    else:
      self.multiplier = nnx.Variable(jnp.asarray(fold.multiplier))
      self.offset = nnx.Variable(jnp.asarray(fold.offset))
      if node.bias is not None:
        self.bias = nnx.Param(jnp.zeros_like(node.bias[...]))

  def quantized_product(self, inputs, kernel, *args: Any, **kwargs: Any):
    """Multiply the input's codes by integers, then by the steps."""
    codes = integer.input_codes(self.grid, inputs)
    if self.arithmetic == "int32":
      result = self.integer_product(
        codes.astype(jnp.int32), kernel.astype(jnp.int32), *args, **kwargs
      )
    else:
      kwargs["precision"] = jax.lax.Precision.HIGHEST
      halved = self.arithmetic == "halves"
      result = sum(
        self.float_product(codes, part, *args, **kwargs).astype(jnp.int32)
        for part in (integer.halves(kernel) if halved else (kernel,))
      )
    if self.observer is not None:
      self.observer(Accumulation(self.path, (codes.astype(jnp.int32),), result))
    scaled = result.astype(jnp.float32) * self.along_output(
      self.multiplier[...], result.ndim, *args
    )
    if self.offset is not None:
      scaled = scaled + self.offset[...]
    return scaled.astype(inputs.dtype)

  def float_product(self, codes, kernel, *args: Any, **kwargs: Any):
    """Multiply whole numbers in float32."""
    return self.product(codes, kernel.astype(codes.dtype), *args, **kwargs)

  def along_output(self, steps, rank: int, *args: Any):
    """Give the steps of a kernel's shape the axes of the output."""
    del rank, args
    if steps.ndim < 2:
      return steps
    return steps.reshape([steps.shape[axis] for axis in self.outputs])


class _IntegerConv(_Integer, layers.QuantConv):
  def integer_product(self, codes, kernel, *args: Any, **kwargs: Any):
    kwargs["preferred_element_type"] = jnp.int32
    return jax.lax.conv_general_dilated(codes, kernel, *args, **kwargs)


class _IntegerConvTranspose(_Integer, layers.QuantConvTranspose):
  def integer_product(self, codes, kernel):
    product = dataclasses.replace(
      self.product, preferred_element_type=jnp.int32
    )
    return product(codes, kernel)

  def float_product(self, codes, kernel, **kwargs: Any):
    return dataclasses.replace(self.product, **kwargs)(
      codes, kernel.astype(codes.dtype)
    )


class _IntegerLinear(_Integer, layers.QuantLinear):
  def integer_product(self, codes, kernel, *args: Any, **kwargs: Any):
    kwargs["preferred_element_type"] = jnp.int32
    return jax.lax.dot_general(codes, kernel, *args, **kwargs)


class _IntegerLinearGeneral(_Integer, layers.QuantLinearGeneral):
  integer_product = _IntegerLinear.integer_product


class _IntegerEinsum(_Integer, layers.QuantEinsum):
  def integer_product(self, codes, kernel, equation: str, **kwargs: Any):
    kwargs["preferred_element_type"] = jnp.int32
    return jnp.einsum(equation, codes, kernel, **kwargs)

  def along_output(self, steps, rank: int, *args: Any):
    if steps.ndim < 2:
      return steps
    operands, _, output = args[0].replace(" ", "").partition("->")
    kernel = operands.partition(",")[2]
    free = rank - len(output.replace("...", ""))
    labels = output.replace("...", "." * free)
    order = sorted(self.outputs, key=lambda axis: labels.index(kernel[axis]))
    moved = steps.reshape([steps.shape[axis] for axis in self.outputs])
    moved = moved.transpose([self.outputs.index(axis) for axis in order])
    sizes = {kernel[axis]: steps.shape[axis] for axis in self.outputs}
    return moved.reshape([sizes.get(label, 1) for label in labels])


_INTEGER: dict[type, Any] = {
  layers.QuantConv: _IntegerConv,
  layers.QuantConvTranspose: _IntegerConvTranspose,
  layers.QuantLinear: _IntegerLinear,
  layers.QuantLinearGeneral: _IntegerLinearGeneral,
  layers.QuantEinsum: _IntegerEinsum,
}


class _IntegerAttention(attention.Attention):
  """Attention whose quantized products add up integers."""

  def __init__(
    self,
    node: attention.Attention,
    products: Mapping[str, integer.IntegerLayer | None],
    observer: Observer | None,
  ):
    layer_kinds.take_over(self, node)
    self.integers = nnx.static(
      tuple((n, p) for n, p in products.items() if p and p.is_integer)
    )
    self.observer = observer

  def __call__(self, query, key, value, bias=None, mask=None, **settings: Any):
    """Attend, see `attention.Attention`."""
    integers = dict(self.integers)
    dtype = settings.get("dtype")
    promote = settings.get("promote_dtype", nnx.nn.dtypes.promote_dtype)
    query, key, value = promote((query, key, value), dtype=dtype)
    if "qk" in integers:
      scores = self.multiply(
        integers["qk"], "...qhd,...khd->...hqk", query, _repeat(key, query)
      )
      scores = scores / jnp.sqrt(query.shape[-1]).astype(query.dtype)
      # To a product that is zero, the scores are a bias.
      bias = scores if bias is None else scores + bias
      query, key = jnp.zeros_like(query), jnp.zeros_like(key)
    else:
      query, key = self.qk.operands(query, key)
    weights = nnx.nn.attention.dot_product_attention_weights(
      query, key, bias, mask, **settings
    )
    equation = "...hqk,...khd->...qhd"
    if "pv" in integers:
      return self.multiply(
        integers["pv"], equation, weights, _repeat(value, query)
      )
    weights, value = self.pv.operands(weights, value)
    return jnp.einsum(
      equation,
      weights,
      _repeat(value, query),
      precision=settings.get("precision"),
    )

  def multiply(self, layer: integer.IntegerLayer, equation: str, *operands):
    """Sum products of two activations' codes, then multiply by the steps."""
    assert layer.second is not None
    grids = (layer.activation, layer.second)
    codes = tuple(
      integer.input_codes(grid, x).astype(jnp.int32)
      for grid, x in zip(grids, operands, strict=True)
    )
    # Over the depth of the keys, or over the values of all keys.
    summed = operands[1].shape[-1 if layer.path.endswith("/qk") else -3]
    largest = [max(abs(grid.lower), abs(grid.upper)) for grid in grids]
    if summed * math.prod(largest) >= _LIMITS["int32"]:
      raise ValueError(
        f"layer {layer.path!r} sums {summed} products of codes up to {largest};"
        " expected sums below 2^31."
      )
    result = jnp.einsum(equation, *codes, preferred_element_type=jnp.int32)
    if self.observer is not None:
      self.observer(Accumulation(layer.path, codes, result))
    step = np.float32(layer.activation.step * layer.second.step)
    return (result.astype(jnp.float32) * step).astype(operands[0].dtype)


def _repeat(x: jax.Array, query: jax.Array) -> jax.Array:
  """Give each head of the query one of the keys or the values."""
  copies = query.shape[-2] // x.shape[-2]
  return jnp.repeat(x, copies, axis=-2) if copies > 1 else x
