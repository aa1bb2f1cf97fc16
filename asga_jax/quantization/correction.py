"""What quantization shifts, moved back: biases and batch norm's statistics.

By difference: a quantized and a float network run on the same inputs, and what
a layer gives or a norm reads is moved by what differs between the two. So the
inputs need not be those that the network was trained on.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.network import arguments, examples, program
from asga_jax.quantization import layers
from asga_jax.xla import promotion

# A feature of which next to nothing is left is not to be blown up.
_SMALLEST_RATIO = 1 / 16

# Path -> mean and variance of each feature, call by call.
Moments: TypeAlias = dict[str, list[tuple[jax.Array, jax.Array]]]
# Path -> what becomes of a norm's mean and variance, or of a bias.
Corrections: TypeAlias = dict[str, tuple[jax.Array, ...]]


@promotion.usual()
def correct_bias(
  model: nnx.Module, batches: Iterable[Any], *, reference: nnx.Module
) -> nnx.Module:
  """Move biases and batch norms by what quantization shifts.

  Each quantized layer that has a bias gets the mean of every output feature
  that the float network has there. Each batch norm's running mean moves by the
  difference of the means that it reads in the two networks, and its variance by
  their ratio. What follows reads what comes of it. No weight, step or code
  changes.

  Args:
    model: any network, best at its policy; it is not changed.
    batches: inputs of the networks (of the method that `searchable` was given),
      without labels, as it takes them; a few hundred images do. They need not
      be of the training set.
    reference: the trained float network that the model was made from.

  Returns:
    A copy in evaluation mode.

  Raises:
    ValueError: no batches, or a reference of other layers.

  Source: bias correction, Nagel et al., "Data-Free Quantization Through Weight
  Equalization and Bias Correction" (2019), section 4.2, on data.
  """
  arguments.check_module(model)
  arguments.check_module(reference)
  copy, origin = nnx.clone(model), nnx.clone(reference)
  copy.eval()
  origin.eval()
  taps, others = find_taps(copy), dict(_named(origin))
  for path, module in taps.items():
    if _size(module) != _size(others.get(path)):
      raise ValueError(
        f"reference ({type(reference).__name__}) has no {path!r} of the size"
        f" {_size(module)}; expected the float network that the model"
        f" ({type(model).__name__}) was made from."
      )
  split = nnx.split(copy), nnx.split(origin)
  graphdefs, states = zip(*split, strict=True)
  # Of a network that `searchable` made, the method that it was asked for.
  known = getattr(model, "example", None)
  method = known[1] if isinstance(known, tuple) else "__call__"
  counted, total = 0, None
  for example in examples.each_of(batches):
    new = _of_batch(graphdefs, tuple(taps), method, states, example)
    counted += example.batch()
    share = np.float32(example.batch() / counted)
    total = new if total is None else _averaged(total, new, share)
  assert total is not None
  apply(copy, total)
  return copy


def find_taps(model: nnx.Module) -> dict[str, Any]:
  """Find what can be corrected, by path: norms, and layers with a bias."""
  quantized = layers.quantized_layers(model)
  return {
    path: module
    for path, module in _named(model)
    if isinstance(module, nnx.BatchNorm)
    or (path in quantized and _adds_bias(module))
  }


@promotion.usual()
def call_noting(
  model: nnx.Module, paths: Iterable[str], call: Callable[[], Any]
) -> tuple[Any, Moments]:
  """Call a float network, and note the moments at some of its modules.

  Args:
    model: in evaluation mode; its modules are changed.
    paths: from `find_taps`.
    call: calls it.
  """
  found: Moments = {}

  def note(path: str, module: Any, x: jax.Array) -> jax.Array:
    found.setdefault(path, []).append(_moments(module, x))
    return x

  _watch(model, paths, note)
  return call(), found


@promotion.usual()
def call_corrected(
  model: nnx.Module, float_moments: Moments, call: Callable[[], Any]
) -> tuple[Any, Corrections]:
  """Call a quantized network whose norms and biases are corrected on the way.

  Args:
    model: in evaluation mode; its modules are changed.
    float_moments: of the float network on the same inputs.
    call: calls it.

  Returns:
    What it gives, and for each module what `apply` takes.
  """
  asked: dict[str, list[tuple[jax.Array, ...]]] = {}
  named = dict(_named(model))
  running = {
    path: (named[path].mean[...], named[path].var[...])
    for path in float_moments
    if isinstance(named[path], nnx.BatchNorm)
  }

  def correct(path: str, module: Any, x: jax.Array) -> jax.Array:
    calls = asked.setdefault(path, [])
    mean, var = _moments(module, x)
    # Of a module that is called more often, the same call.
    old_mean, old_var = float_moments[path][len(calls)]
    if path not in running:
      calls.append((old_mean - mean,))
      return x + (old_mean - mean).astype(x.dtype)
    ratio = jnp.where(old_var > 0, var / jnp.where(old_var > 0, old_var, 1), 1)
    ratio = jnp.maximum(ratio, _SMALLEST_RATIO)
    moved = running[path][0] + mean - old_mean, running[path][1] * ratio
    module.mean[...], module.var[...] = moved
    calls.append(moved)
    return x

  _watch(model, float_moments, correct)
  output = call()
  return output, {
    path: jax.tree.map(lambda *each: sum(each) / len(each), *calls)
    for path, calls in asked.items()
  }


def apply(model: nnx.Module, corrections: Mapping[str, Any]) -> None:
  """Set a network's statistics and biases, in place."""
  named = dict(_named(model))
  for path, values in corrections.items():
    module = named[path]
    if isinstance(module, nnx.BatchNorm):
      mean, var = values
      module.mean[...] = mean.astype(module.mean[...].dtype)
      module.var[...] = var.astype(module.var[...].dtype)
    else:
      (shift,) = values
      module.bias[...] += shift.astype(module.bias[...].dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _of_batch(graphdefs, paths, method, states, example):
  model, origin = (
    nnx.merge(*each, copy=True) for each in zip(graphdefs, states, strict=True)
  )
  call = functools.partial(example.call, getattr(origin, method))
  _, moments = call_noting(origin, paths, call)
  call = functools.partial(example.call, getattr(model, method))
  _, corrections = call_corrected(model, moments, call)
  return corrections


@jax.jit
def _averaged(total, new, share):
  return jax.tree.map(lambda a, b: a + share * (b - a), total, new)


def _named(model: nnx.Module) -> list[tuple[str, Any]]:
  return [
    (program.path_name(path), module)
    for path, module in nnx.iter_modules(model)
  ]


def _adds_bias(module: Any) -> bool:
  """Say whether what a layer gives is its product plus its bias."""
  own = type(module).__call__
  return own.__module__.startswith("flax.nnx.") and isinstance(
    getattr(module, "bias", None), nnx.Variable
  )


def _size(module: Any) -> tuple[int, ...] | None:
  """Give the shape of what is corrected."""
  holder = "mean" if isinstance(module, nnx.BatchNorm) else "bias"
  variable = getattr(module, holder, None)
  return None if variable is None else tuple(variable[...].shape)


def _moments(module: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Give mean and variance of each feature of a norm's input or an output."""
  if isinstance(module, nnx.BatchNorm):
    kept = np.atleast_1d(module.axis) % x.ndim
  else:
    kept = np.arange(x.ndim - module.bias.ndim, x.ndim)
  axes = tuple(axis for axis in range(x.ndim) if axis not in kept)
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return wide.mean(axis=axes), wide.var(axis=axes)


def _watch(model: nnx.Module, paths: Iterable[str], change: Any) -> None:
  """Let modules change what they read (norms) or give (layers), in place.

  What is called within another transformation of JAX does as before.
  """
  named = dict(_named(model))
  is_outside = program.here()
  for path in paths:
    module = named[path]
    kind = type(module)
    reads = isinstance(module, nnx.BatchNorm)

    def call(self, x, *rest, path=path, kind=kind, reads=reads, **settings):
      if not is_outside():
        return kind.__call__(self, x, *rest, **settings)
      if reads:
        x = change(path, self, x)
      output = kind.__call__(self, x, *rest, **settings)
      return output if reads else change(path, self, output)

    module.__class__ = type(kind.__name__, (kind,), {"__call__": call})
