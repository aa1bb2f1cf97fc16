"""Multiply-accumulates and weights per layer, from static shapes."""

import math
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from asga_jax.cost import costs
from asga_jax.network import attention
from asga_jax.network import calls as tracing
from asga_jax.network import kinds as layer_kinds


def network_stats(
  model: nnx.Module,
  input_shape: Sequence[int],
  *,
  dtype: jax.typing.DTypeLike = jnp.float32,
  method: str = "__call__",
  products: Collection[str] = (),
) -> costs.NetworkStats:
  """Count the MACs and weights of every layer, without running the network.

  Groups are counted (a depthwise convolution multiplies each output by its own
  channel alone); biases and norms are not. A layer that is called more often
  counts its weights once and its MACs at each call.

  Args:
    model: any Flax NNX module with layers of `layer_kinds.KINDS`, such as
      `nnx.eval_shape` gives; it is not changed.
    input_shape: the shape of one input, without the batch.
    dtype: the dtype of the input.
    method: the method to trace.
    products: paths of products of attention to count as layers without weights.

  Returns:
    The layers in call order and the elements that stay float32: all parameters
    and batch statistics but the kernels of the layers.

  Raises:
    ValueError: the model calls no layer, or lacks one of the products.
  """
  graphdef, state = nnx.split(model)
  calls: list[tuple[str, int]] = []
  found = tracing.find_layers(attention.expose_products(nnx.clone(model)))

  def trace(state, inputs):
    _, recorded = tracing.record_calls(
      nnx.merge(graphdef, state, copy=True),
      inputs,
      method=method,
      products=True,
    )
    for call in recorded:
      layer = found[call.path]
      kind = layer_kinds.kind_of(layer)
      assert kind is not None
      calls.append((call.path, layer_kinds.count_macs(kind, layer, call)))

  example = jax.ShapeDtypeStruct((1, *input_shape), dtype)
  jax.eval_shape(trace, state, example)
  calls = [
    (path, count)
    for path, count in calls
    if not isinstance(found[path], attention.Product) or path in products
  ]
  missing = sorted(set(products) - {path for path, _ in calls})
  if missing:
    raise ValueError(
      f"model ({type(model).__name__}) has no products {missing}."
    )
  if not calls:
    raise ValueError(
      f"model ({type(model).__name__}) calls no layer that is counted; "
      f"expected one of {layer_kinds.NAMES}."
    )
  macs: dict[str, int] = {}
  for path, count in calls:
    macs[path] = macs.get(path, 0) + count
  weights = {path: _count_weights(found[path]) for path in macs}
  kept = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
  elements = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(kept))
  return costs.NetworkStats(
    layers=tuple(
      costs.LayerStats(path, macs[path], weights[path]) for path in macs
    ),
    float_parameters=elements - sum(weights.values()),
  )


def _count_weights(layer: nnx.Module) -> int:
  kernel = getattr(layer, "kernel", None)
  return 0 if kernel is None else kernel.size
