"""Which layers a network calls, in which order, and on what tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

# The attribute through which a layer calls its product of input and kernel.
PRODUCTS: dict[type[nnx.Module], str] = {
  nnx.Conv: "conv_general_dilated",
  nnx.Linear: "dot_general",
}


class LayerCall(NamedTuple):
  """One call of a layer: what its product read and what it gave."""

  path: str
  inputs: jax.Array  # shape=(batch, ..., in_features)
  kernel: jax.Array  # shape=(..., in_features / groups, out_features)
  output: jax.Array  # shape=(batch, ..., out_features)


def path_name(path: tuple[Any, ...]) -> str:
  """Join the parts of a module's path by slashes."""
  return "/".join(str(part) for part in path)


def product_attribute(module: Any) -> str | None:
  """Name the attribute that holds a layer's product, None for no layer."""
  for layer_type, attribute in PRODUCTS.items():
    if isinstance(module, layer_type):
      return attribute
  return None


def find_layers(model: nnx.Module) -> dict[str, nnx.Module]:
  """Find the convolutions and linear layers of a network.

  Args:
    model: any Flax NNX module. A shared layer is listed once, under the first
      path at which it is met.

  Returns:
    The layers by path, in the order of the module tree.
  """
  return {
    path_name(path): module
    for path, module in nnx.iter_modules(model)
    if product_attribute(module) is not None
  }


def _recorder(
  path: str, product: Callable[..., jax.Array], calls: list[LayerCall]
) -> Callable[..., jax.Array]:
  def recording(
    inputs: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any
  ):
    output = product(inputs, kernel, *args, **kwargs)
    calls.append(LayerCall(path, inputs, kernel, output))
    return output

  return recording


def record_calls(
  model: nnx.Module, *args: Any, method: str = "__call__"
) -> tuple[Any, list[LayerCall]]:
  """Run a network and list the calls of its layers, in call order.

  Args:
    model: any Flax NNX module; it is not changed, nor is its state.
    *args: what the method takes.
    method: the name of the method to run.

  Returns:
    What the method returned, and the calls. Under `jax.eval_shape` or `jax.jit`
    the calls hold tracers, which must not leave the traced function.
  """
  calls: list[LayerCall] = []
  copy = nnx.clone(model)
  for path, layer in find_layers(copy).items():
    attribute = product_attribute(layer)
    assert attribute is not None
    product = getattr(layer, attribute)
    setattr(layer, attribute, _recorder(path, product, calls))
  return getattr(copy, method)(*args), calls
