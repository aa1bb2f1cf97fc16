"""Kernels rounded so that what a layer gives stays what it was."""

import collections
import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from asga_jax.network import arguments, examples, kinds, patches, program
from asga_jax.quantization import (
  compensation,
  correction,
  layers,
  quantizers,
  remembered,
)
from asga_jax.xla import promotion

# Rows of a layer's input, at least; and for each weight of a feature.
_ROWS, _ROWS_EACH = 8192, 8
# Weights of a feature; a matrix of their squares is inverted.
MOST = 8192


# Of float32 sums, as a share of them.
_NOISE = 1e-5


class Moments(NamedTuple):
  """Sums over the rows that a layer multiplies, for each group."""

  count: Any  # shape ()
  unit: Any  # shape (), of what the rest are sums in
  quantized: Any  # (groups, summed)
  given: Any  # (groups, summed)
  gram: Any  # (groups, summed, summed), of the quantized rows
  cross: Any  # the same, of quantized rows and rows as they are given


@promotion.usual()
def round_weights(model: nnx.Module, batches: Iterable[Any]) -> nnx.Module:
  """Round the kernels of a fixed network by what they do to its outputs.

  Each layer's float kernel becomes the one that gives, from the layer's
  quantized input, what the float kernel gives from the float input (least
  squares), and its weights are then rounded one after the other, each error
  made good by the weights that are still to come. Means that `correct_bias`
  corrects are left to it; it is called after this. No step changes; no label
  and no gradient is used. All moments are held at once: for each layer and
  group twice the square of the weights of a feature, in float32.

  Left to be rounded to the nearest: kernels that layers share, that are changed
  before they are multiplied, or of more than 8192 weights a feature; transposed
  convolutions, einsums, and quantizers that transform weights; and layers that
  are called within another transformation of JAX.

  Args:
    model: fixed by a policy, float weights in it; it is not changed.
    batches: inputs of the network, without labels, as `searchable` takes them;
      a few hundred images do.

  Returns:
    A copy in evaluation mode, whose kernels lie on their grids.

  Raises:
    ValueError: no batches, a model that has more than one candidate left or was
      not made by `searchable`, or inputs that are not finite.

  Source: Frantar et al., "GPTQ" (2022), algorithm 1, with features in the order
  of their mean squares; the target from quantized inputs as in Li et al.,
  "GPTAQ" (2025), each layer by itself.
  """
  arguments.check_module(model)
  _check_fixed(model)
  copy = nnx.clone(model)
  copy.eval()
  kernels, centred = layers.kernel_layers(copy), means_corrected(copy)
  for path, moments in gather_moments(copy, batches).items():
    layer = kernels[path]
    if layer.product.weight.candidates() != (quantizers.FLOAT_BITS,):
      solved = solve(layer, moments, centred=path in centred)
      layer.kernel[...] = rounded_kernel(layer, solved)
  return copy


@promotion.usual()
def gather_moments(
  model: nnx.Module, batches: Iterable[Any]
) -> dict[str, Moments]:
  """Sum up what the layers of a float network read, and its quantized values.

  Args:
    model: in evaluation mode, with one candidate left of each input; its float
      weights are used.
    batches: see `round_weights`.

  Returns:
    Path -> sums, of each layer whose kernel can be rounded by them; none, and a
    warning, of layers that are called within other transformations of JAX.

  Raises:
    ValueError: see `round_weights`.
  """
  _, method = remembered.recall(model, "example")
  given = list(examples.each_of(batches))
  paths = tuple(_roundable(model))
  graphdef, state = nnx.split(model)
  images = sum(example.batch() for example in given)
  total: dict[str, Moments] = {}
  for example in given:
    new = _of_batch(graphdef, paths, method, images, state, example)
    for path, moments in jax.tree.map(np.asarray, new).items():
      known = total.get(path)
      total[path] = moments if known is None else _sum(known, moments)
  exact = (quantizers.FLOAT_BITS,)
  quantized = layers.quantized_layers(model)
  if nested := [
    path
    for path in paths
    if path not in total and quantized[path].weight.candidates() != exact
  ]:
    logging.warning(
      "not called, or within other transformations of JAX, so that their"
      " kernels are rounded to the nearest: %s",
      ", ".join(nested),
    )
  for path, moments in total.items():
    if not all(np.isfinite(x).all() for x in moments):
      raise ValueError(
        f"layer {path!r} reads values that are not finite; expected finite"
        " weights and inputs."
      )
  return total


def _check_fixed(model: nnx.Module) -> None:
  for path, product in layers.quantized_layers(model).items():
    for choice in (product.weight, product.activation):
      if len(choice.candidates()) > 1:
        raise ValueError(
          f"layer {path!r} has the candidates {choice.candidates()}; expected a"
          " network that is fixed by a policy, see with_policy."
        )


def _roundable(model: nnx.Module) -> list[str]:
  """List the layers whose kernel is their own and is rounded step by step."""
  # Layers that share a kernel share its choice.
  uses = collections.Counter(
    id(product.weight) for product in layers.quantized_layers(model).values()
  )
  found = []
  for path, layer in layers.kernel_layers(model).items():
    choice, matrix = layer.product.weight, layer.kernel_matrix()
    if (
      uses[id(choice)] == 1
      and layer.product.attribute in patches.ATTRIBUTES
      and choice.quantizer.transform(matrix) is matrix
      and len(matrix) <= MOST
    ):
      found.append(path)
  return found


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _of_batch(graphdef, paths, method, images, state, example):
  """Run the float network, and sum up what its layers would read."""
  model = nnx.merge(graphdef, state, copy=True)
  found: dict[str, Moments] = {}
  is_outside = program.here()
  for path, product in layers.quantized_layers(model).items():

    def call(self, *args, path=path, **settings):
      if path in paths and is_outside():
        given = kinds.read_call(self.attribute, args, settings)
        summed = math.prod(given.second.shape) // math.prod(
          given.second.shape[axis] for axis in self.outputs
        )
        share = max(_ROWS, _ROWS_EACH * summed) / images
        most = math.ceil(share * example.batch())
        moments = _moments(self, given, most)
        known = found.get(path)
        found[path] = moments if known is None else _sum(known, moments)
      return self.float_product(*args, **settings)

    kind = type(product)
    product.__class__ = type(kind.__name__, (kind,), {"__call__": call})
  example.call(getattr(model, method))
  return found


def _moments(
  product: layers.QuantizedProduct, call: kinds.Call, most: int
) -> Moments:
  both = [
    patches.rows(product.attribute, call._replace(first=x), most).astype(
      jnp.float32
    )
    for x in (product.activation(call.first), call.first)
  ]
  # In this unit squares neither overflow nor vanish.
  unit = jnp.maximum(jnp.abs(jnp.stack(both)).max(), jnp.finfo("float32").tiny)
  quantized, given = (x / unit for x in both)
  # The mean is taken out of these afterwards, which leaves of short products
  # nothing.
  times = functools.partial(
    jnp.matmul, quantized.swapaxes(1, 2), precision="highest"
  )
  return Moments(
    jnp.float32(quantized.shape[1]),
    unit,
    quantized.sum(axis=1),
    given.sum(axis=1),
    times(quantized),
    times(given),
  )


def _sum(known: Moments, new: Moments) -> Moments:
  traced = isinstance(known.unit, jax.Array)
  unit = (jnp if traced else np).maximum(known.unit, new.unit)
  shares = known.unit / unit, new.unit / unit
  powers = Moments(count=0, unit=0, quantized=1, given=1, gram=2, cross=2)
  sums = (
    a * shares[0] ** power + b * shares[1] ** power
    for a, b, power in zip(known, new, powers, strict=True)
  )
  return Moments(*sums)._replace(unit=unit)


def means_corrected(model: nnx.Module) -> set[str]:
  """List the layers of whose outputs `correct_bias` corrects the means.

  Those with a bias; and all of a network that has batch norms, one of which is
  taken to follow a layer without a bias.
  """
  taps = correction.find_taps(model)
  if any(isinstance(tap, nnx.BatchNorm) for tap in taps.values()):
    return set(layers.quantized_layers(model))
  return set(taps)


def solve(
  layer: layers.KernelLayer, moments: Moments, *, centred: bool
) -> compensation.Solved:
  """Find the kernel that gives the same of a layer's quantized inputs.

  Args:
    layer: with its float kernel.
    moments: of the layer, from `gather_moments`.
    centred: whether another mean of the outputs does not matter.
  """
  count, _, quantized, given, gram, cross = (
    np.asarray(x, np.float64) for x in moments
  )
  # What is left of a small deviation beside a large mean is noise.
  squares = np.diagonal(gram, axis1=1, axis2=2).mean(axis=1) / count
  floor = _NOISE * squares[:, None, None] * np.eye(gram.shape[1])
  gram, cross = gram / count + floor, cross / count + floor
  if centred:
    gram -= _outer(quantized, quantized) / count**2
    cross -= _outer(quantized, given) / count**2
  matrix = np.asarray(layer.kernel_matrix(), np.float64)
  columns = matrix.reshape(len(matrix), len(gram), -1).swapaxes(0, 1)
  return compensation.solve_columns(columns, gram, cross)


def rounded_kernel(
  layer: layers.KernelLayer, solved: compensation.Solved
) -> jax.Array:
  """Round the kernel of a layer whose weights have one candidate left.

  Args:
    layer: it is not changed.
    solved: of the layer.

  Returns:
    The kernel, of its shape and type.
  """
  choice, kernel = layer.product.weight, layer.kernel[...]
  step = np.asarray(choice.steps(), np.float32)[0]
  step = np.maximum(step, np.float32(quantizers.SMALLEST_STEP))
  groups, summed, features = solved.target.shape
  steps = np.broadcast_to(step, groups * features).reshape(groups, -1)
  lower, upper = (float(np.asarray(x)[0]) for x in choice.grids()[:2])
  rounded = compensation.round_columns(
    solved, compensation.Grid(steps, lower, upper, choice.quantizer.offset)
  )
  matrix = rounded.swapaxes(0, 1).reshape(summed, -1)
  return jnp.asarray(
    kinds.from_matrix(matrix, kernel.shape, layer.product.outputs),
    kernel.dtype,
  )


def _outer(left: np.ndarray, right: np.ndarray) -> np.ndarray:
  return left[:, :, None] * right[:, None, :]
