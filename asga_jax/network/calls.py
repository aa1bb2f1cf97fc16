"""Which layers a network calls, in which order, and on what tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from asga_jax.network import attention, bridged
from asga_jax.network import kinds as layer_kinds


class LayerCall(NamedTuple):
  """One call of a layer: what its product read and what it gave.

  For a product of attention `kernel` is its second operand, and the output is
  not known.
  """

  path: str
  inputs: jax.Array  # shape=(batch, ...)
  kernel: jax.Array
  output: Any  # shape=(batch, ...), before the bias


def path_name(path: tuple[Any, ...]) -> str:
  """Join the parts of a module's path by slashes."""
  return "/".join(str(part) for part in path)


def find_layers(model: nnx.Module) -> dict[str, nnx.Module]:
  """Find the layers of a network whose product can be quantized.

  Args:
    model: any Flax NNX module. A shared layer is listed once, under the first
      path at which it is met.

  Returns:
    The layers by path, in the order of the module tree; see
    `layer_kinds.KINDS`.
  """
  return {
    path_name(path): module
    for path, module in nnx.iter_modules(model)
    if layer_kinds.kind_of(module) is not None
  }


def find_refused(model: nnx.Module) -> dict[str, str]:
  """Find the modules with kernels that cannot be quantized, and say why.

  Args:
    model: any Flax NNX module.

  Returns:
    Path -> reason, in the order of the module tree.
  """
  found = {}
  for path, module in nnx.iter_modules(model):
    if isinstance(module, nnx.bridge.ToNNX):
      found.update(bridged.find_kernels(path_name(path[:-1]), module))
      continue
    reason = layer_kinds.refusal(module)
    if reason is not None:
      found[path_name(path)] = f"{type(module).__name__}: {reason}"
  return found


def _with_products(model: nnx.Module) -> nnx.Module:
  """Copy a network so that every layer calls its product by an attribute."""
  copy: nnx.Module = nnx.clone(model)
  plain = nnx.ConvTranspose
  if not any(type(module) is plain for _, module in nnx.iter_modules(copy)):
    return copy

  def replace(path, node):
    del path
    refused = layer_kinds.kind_of(node) is None
    if type(node) is not plain or refused:
      return node
    return layer_kinds.ConvTranspose(node)

  made: nnx.Module = nnx.recursive_map(replace, copy)
  return made


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
  model: nnx.Module,
  *args: Any,
  method: str = "__call__",
  products: bool = False,
) -> tuple[Any, list[LayerCall]]:
  """Run a network and list the calls of its layers, in call order.

  Args:
    model: any Flax NNX module; it is not changed, nor is its state.
    *args: what the method takes.
    method: the name of the method to run.
    products: whether to list those of attention too.

  Returns:
    What the method returned, and the calls. Under `jax.eval_shape` or `jax.jit`
    the calls hold tracers, which must not leave the traced function.
  """
  calls: list[LayerCall] = []
  copy = _with_products(model)
  if products:
    attention.expose_products(copy)
  for path, layer in find_layers(copy).items():
    kind = layer_kinds.kind_of(layer)
    assert kind is not None
    product = layer_kinds.get_product(layer, kind)
    layer_kinds.set_product(layer, kind, _recorder(path, product, calls))
  return getattr(copy, method)(*args), calls
