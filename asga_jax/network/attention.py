"""Attention whose two products, q.k and p.v, can be seen and quantized.

Flax's attention multiplies inside one function. Here the same function calls
each product's operands through a module, whose path names it.
"""

from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp


def both(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Give both operands, as they come."""
  return first, second


class Product(nnx.Module):
  """The operands of a product of two activations; float, as they come."""

  def operands(
    self, first: jax.Array, second: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Give what is multiplied."""
    return both(first, second)


class Attention(nnx.Module):
  """`nnx.dot_product_attention` with its products in `qk` and `pv`."""

  def __init__(self):
    self.qk = Product()
    self.pv = Product()

  def __call__(
    self,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    **settings: Any,
  ) -> jax.Array:
    """Attend.

    Args:
      query: shape [..., queries, heads, depth].
      key: shape [..., keys, key heads, depth]; the heads are a multiple of the
        key heads.
      value: shape [..., keys, key heads, width].
      bias: added to the scores, shape [..., heads, queries, keys].
      mask: where to attend, of that shape.
      **settings: what else `nnx.dot_product_attention` takes.

    Returns:
      Shape [..., queries, heads, width].
    """
    dtype = settings.get("dtype")
    promote = settings.get("promote_dtype", nnx.nn.dtypes.promote_dtype)
    query, key, value = promote((query, key, value), dtype=dtype)
    query, key = self.qk.operands(query, key)
    weights = nnx.nn.attention.dot_product_attention_weights(
      query, key, bias, mask, **settings
    )
    weights, value = self.pv.operands(weights, value)
    copies = query.shape[-2] // value.shape[-2]
    if copies > 1:
      value = jnp.repeat(value, copies, axis=-2)
    return jnp.einsum(
      "...hqk,...khd->...qhd",
      weights,
      value,
      precision=settings.get("precision"),
    )


def attends(module: nnx.Module) -> bool:
  """Say whether a module attends by Flax's own function, through a name."""
  function = getattr(module, "attention_fn", None)
  return function is nnx.dot_product_attention


def expose_products(model: nnx.Module) -> nnx.Module:
  """Give the modules that attend by Flax's function one that shows products.

  Args:
    model: any network; changed in place. A module attends so if it has an
      attribute `attention_fn` that is `nnx.dot_product_attention`, as
      `nnx.MultiHeadAttention` has, and calls it.

  Returns:
    The same network, with the paths `attention_fn/qk` and `attention_fn/pv`
    below such modules.
  """
  for module in [m for _, m in nnx.iter_modules(model) if attends(m)]:
    module.attention_fn = nnx.data(Attention())  # type: ignore[attr-defined]
  return model


def hide_products(model: nnx.Module) -> None:
  """Undo `expose_products` where no product is of another kind, in place."""
  for _, module in list(nnx.iter_modules(model)):
    function = getattr(module, "attention_fn", None)
    if isinstance(function, Attention) and not any(
      "operands" in vars(product) for product in (function.qk, function.pv)
    ):
      module.attention_fn = nnx.static(nnx.dot_product_attention)  # type: ignore[attr-defined]
