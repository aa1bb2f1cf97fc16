"""A fixed network that multiplies integers: the reference for runtimes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.deploy import folding, integer, integer_product
from asga_jax.network import attention, program
from asga_jax.quantization import layers
from asga_jax.xla import promotion

ARITHMETICS = ("int32", "float32")
# Whole numbers below these are exact.
_LIMITS = {"int32": 2**31, "float32": 2**24}


Accumulation = integer_product.Accumulation
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

  copy: Any = nnx.clone(model)
  products = layers.quantized_layers(copy)
  modules: list[Any] = list(nnx.iter_modules(copy))
  for path, module in modules:
    name = program.path_name(path)
    if isinstance(module, attention.Attention):
      parts = {part: found.get(f"{name}/{part}") for part in ("qk", "pv")}
      _set(copy, path, _IntegerAttention(module, parts, observer))
    elif name in skipped:
      _set(copy, path, _Skipped())
    layer = found.get(name)
    if layer is None or layer.codes is None or not layer.is_integer:
      continue
    if layer.largest_accumulator() >= _LIMITS["int32"]:
      raise ValueError(
        f"layer {name!r} may sum to {layer.largest_accumulator()}; expected"
        " less than 2^31."
      )
    product = integer_product.IntegerProduct(
      products[name],
      layer,
      folds.get(name),
      _exact_arithmetic(layer) if arithmetic == "float32" else arithmetic,
      observer,
    )
    setattr(module, products[name].attribute, nnx.data(product))
    if name in folds and module.bias is not None:
      module.bias = nnx.Param(jnp.zeros_like(module.bias[...]))
  copy.eval()
  return copy  # type: ignore[no-any-return]


def _set(model: Any, path: tuple[Any, ...], module: nnx.Module) -> None:
  """Put a module where another one is."""
  *parents, last = path
  node = model
  for part in parents:
    inside = isinstance(node, dict | list | tuple | nnx.List | nnx.Dict)
    node = node[part] if inside else getattr(node, str(part))
  if isinstance(node, dict | list | nnx.List | nnx.Dict):
    node[last] = module
  else:
    setattr(node, str(last), module)


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


class _IntegerAttention(attention.Attention):
  """Attention whose quantized products add up integers."""

  def __init__(
    self,
    node: attention.Attention,
    products: Mapping[str, integer.IntegerLayer | None],
    observer: Observer | None,
  ):
    self.qk, self.pv = node.qk, node.pv
    self.integers = nnx.static(
      tuple((n, p) for n, p in products.items() if p and p.is_integer)
    )
    self.observer = nnx.static(observer)

  @promotion.usual()
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
