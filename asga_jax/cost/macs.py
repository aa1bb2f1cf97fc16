"""Multiply-accumulates and weights per layer, from static shapes."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from asga_jax.cost import costs
from asga_jax.network import examples, program, reading
from asga_jax.network import kinds as layer_kinds


def network_stats(
  model: nnx.Module,
  input_shape: Sequence[int] | examples.Example,
  *,
  dtype: jax.typing.DTypeLike = jnp.float32,
  method: str = "__call__",
  products: Collection[str] = (),
  seen: tuple[program.Program, reading.Reading] | None = None,
) -> costs.NetworkStats:
  """Count the MACs and weights of every layer, without running the network.

  Groups are counted (a depthwise convolution multiplies each output by its own
  channel alone); biases and norms are not. A layer that is called more often
  counts its MACs at each call. A kernel counts once, with the first layer that
  multiplies by it.

  Args:
    model: any Flax NNX module, such as `nnx.eval_shape` gives; it is not
      changed.
    input_shape: the shape of one input, without the batch; or an example of one
      input, with it.
    dtype: the dtype of the input, given its shape.
    method: the method to trace.
    products: paths of products of attention to count as layers without weights.
    seen: the traced program of one input and what was read in it, if known.

  Returns:
    The layers in call order; what is multiplied beside them, in float; and the
    elements that stay float32: all parameters and batch statistics but the
    kernels of the layers.

  Raises:
    ValueError: the model calls no layer, or lacks one of the products.
  """
  if seen is None:
    if not isinstance(input_shape, examples.Example):
      one: Any = jax.ShapeDtypeStruct((1, *input_shape), dtype)
      input_shape = examples.Example(one)
    made = program.trace(model, input_shape, method=method)
    seen = made, reading.read(made)
  traced, found = seen
  missing = sorted(set(products) - set(traced.readers))
  if missing:
    raise ValueError(
      f"model ({type(model).__name__}) has no products {missing}."
    )
  refusals = reading.refusals(traced, found)
  paths = [
    path
    for path in traced.readers
    if path not in refusals and (traced.outputs[path] or path in products)
  ]
  if not paths:
    raise ValueError(
      f"model ({type(model).__name__}) calls no layer that is counted; "
      f"expected one of {layer_kinds.NAMES}."
    )
  macs: dict[tuple[str, bool], int] = {}
  for product in found.products:
    # A path that is none has a name of its own, as in all that is printed.
    key = (
      product.path or program.ITSELF,
      product.layer and product.path in paths,
    )
    macs[key] = macs.get(key, 0) + product.macs
  for path in paths:
    macs.setdefault((path, True), traced.sizes.get(path, 0))
  weights = _count_weights(paths, traced, found)
  kept = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
  elements = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(kept))
  return costs.NetworkStats(
    layers=tuple(
      costs.LayerStats(path, macs[path, True], weights[path]) for path in paths
    ),
    float_parameters=max(0, elements - sum(weights.values())),
    float_layers=tuple(
      costs.LayerStats(path, count, 0)
      for (path, layer), count in macs.items()
      if not layer
    ),
  )


def _count_weights(
  paths: Sequence[str], traced: program.Program, found: reading.Reading
) -> dict[str, int]:
  counted: set[str] = set()
  weights = {}
  for path in paths:
    kernel = found.kernels[path][0]
    source = kernel.known.source
    fresh = bool(traced.outputs[path]) and source not in counted
    weights[path] = math.prod(kernel.shape) if fresh else 0
    if source is not None:
      counted.add(source)
  return weights
