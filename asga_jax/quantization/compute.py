"""A network that computes in a narrow type, with parameters as they are."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from asga_jax.network import kinds
from asga_jax.quantization import layers


def narrow(model: nnx.Module, dtype: str) -> None:
  """Let the layers of a network compute in a type, in place.

  Kernels that are quantized are narrowed behind their quantizer: what a small
  perturbation moves would be rounded away before it.

  Args:
    model: float or quantized; layers that have a type of their own, other than
      float32, keep it.
    dtype: such as 'bfloat16'.

  Raises:
    ValueError: no layer has Flax's fields `dtype` and `param_dtype`.
  """
  wide = (None, jnp.float32, "float32")
  held: list[Any] = [
    module
    for _, module in nnx.iter_modules(model)
    if {"dtype", "param_dtype"} <= vars(module).keys()
  ]
  if not held:
    raise ValueError(
      f"compute_dtype is {dtype!r}, and no layer of {type(model).__name__} has"
      " the fields dtype and param_dtype of Flax's; expected 'float32', and"
      " types that the network casts to itself"
    )
  for module in held:
    if module.dtype not in wide:
      continue
    module.dtype = jnp.dtype(dtype)
    for name in kinds.ATTRIBUTES:
      product = vars(module).get(name)
      if not isinstance(product, layers.QuantizedProduct):
        continue
      if product.has_kernel and hasattr(module, "promote_dtype"):
        module.promote_dtype = _all_but_kernel
        product.float_product = nnx.static(
          _in_type(product.float_product, module.dtype)
        )


def _all_but_kernel(args: Any, /, **settings: Any) -> Any:
  """Stand for Flax's promotion of (inputs, kernel, bias)."""
  inputs, kernel, *others = args
  inputs, *others = dtypes.promote_dtype((inputs, *others), **settings)
  return (inputs, kernel, *others)


@functools.cache
def _in_type(product: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
  """Cast what a product is handed; one function for equal layers."""

  def call(*args, **settings):
    return product(*map(cast, args), **settings)

  def cast(x):
    is_float = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(dtype) if is_float else x

  return call
