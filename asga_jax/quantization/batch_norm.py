"""Batch norm's running statistics, taken anew at other bits."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from asga_jax.network import arguments, examples
from asga_jax.quantization import promotion

_SMALLEST_RATIO = 1 / 16


def reestimated(
  model: nnx.Module,
  batches: Iterable[Any],
  *,
  reference: nnx.Module | None = None,
) -> nnx.Module:
  """Take batch norm's running statistics anew from a few batches.

  Fewer bits move what a norm reads away from what it was trained on; this is
  what the commands do before they report an accuracy.

  Args:
    model: any network, best at its policy; it is not changed.
    batches: inputs of the network, without augmentation, float32 of shape
      (batch, ...). Ten batches of 250 images are what the commands take.
    reference: the trained float network, whose statistics the model still has.
      They are then moved by the difference between the two networks, which is
      right for images that the network was not trained on as well.

  Returns:
    A copy in evaluation mode: means and variances over all examples of all
    batches; as before where there is no batch norm.

  Raises:
    ValueError: there are norms but no batches, or a reference of other norms.
  """
  arguments.check_module(model)
  copy = nnx.clone(model)
  if reference is None:
    seen = reestimate_batch_norm(copy, batches)
  else:
    arguments.check_module(reference)
    seen = correct_batch_norm(copy, reference, batches)
  if not seen and has_batch_norm(copy):
    raise ValueError("batches is empty; expected at least one batch of inputs.")
  return copy


@promotion.usual()
def reestimate_batch_norm(model: nnx.Module, batches: Iterable[Any]) -> int:
  """Replace batch norm's running statistics by those of all batches together.

  Quantization shifts activations away from the statistics that were gathered
  while bits were still mixed. Mean and variance are those over the examples of
  all batches, so the variance has that of the means between batches in it.
  (Each batch is still normalised by its own statistics on its way to the norms
  that follow, as in training.)

  Args:
    model: a network with `nnx.BatchNorm` layers; changed in place, and left in
      evaluation mode, in which all but those layers run.
    batches: inputs of the network, their first axis the examples.

  Returns:
    How many batches were seen; with none the statistics stay.

  Source: batches are merged as by Chan, Golub and LeVeque, "Updating formulae
  and a pairwise algorithm for computing sample variances" (1979).
  """
  norms = _batch_norms(model)
  model.eval()
  if not norms:
    return 0
  graphdef, state = nnx.split(model)
  seen, counted = 0, 0
  total = None
  if not isinstance(batches, Iterable):
    raise ValueError(
      f"batches is a {type(batches).__name__}; expected batches of inputs."
    )
  for inputs in batches:
    example = examples.as_example(inputs)
    try:
      new = _batch_statistics(graphdef, state, example)
    except (TypeError, ValueError) as error:
      reason = " ".join(str(error).split())[:600]
      raise ValueError(
        f"{type(model).__name__} does not run on a batch, {example.describe()}:"
        f" {reason}; {examples.ACCEPTED}"
      ) from error
    size = np.shape(jax.tree.leaves(inputs)[0])[0]
    counted += size
    share = np.float32(size / counted)
    total = new if total is None else _merged(total, new, share)
    seen += 1
  if total is not None:
    for norm, (mean, var) in zip(norms, total, strict=True):
      norm.mean[...] = mean
      norm.var[...] = var
  return seen


@promotion.usual()
def correct_batch_norm(
  model: nnx.Module, reference: nnx.Module, batches: Iterable[Any]
) -> int:
  """Move running statistics by what quantization moves, and by no more.

  Both networks run on the same inputs, in evaluation mode. The running mean of
  a norm moves by the difference of the means that it reads in the two, and its
  variance by their ratio; norms that follow read what comes of it. So the
  inputs need not be those that the statistics were gathered on, which plain
  estimates on a few other images are not.

  Args:
    model: a network with `nnx.BatchNorm` layers; changed in place, and left in
      evaluation mode.
    reference: the float network that it was made from; it is not changed.
    batches: inputs of the networks, their first axis the examples.

  Returns:
    How many batches were seen; with none the statistics stay.

  Raises:
    ValueError: the networks differ in their norms.

  Source: as bias correction in Nagel et al., "Data-Free Quantization Through
  Weight Equalization and Bias Correction" (2019), section 4.2, on data.
  """
  norms = _batch_norms(model)
  model.eval()
  copy = nnx.clone(reference)
  copy.eval()
  shapes = [
    [norm.mean.shape for norm in _batch_norms(m)] for m in (model, copy)
  ]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f"reference ({type(reference).__name__}) has {len(shapes[1])} batch norms"
      f" of other shapes or number than the {len(shapes[0])} of the model;"
      " expected the float network that it was made from."
    )
  if not norms:
    return 0
  split = nnx.split(model), nnx.split(copy)
  graphdefs, states = zip(*split, strict=True)
  seen, counted = 0, 0
  total = None
  for inputs in batches:
    new = _corrected(graphdefs, states, examples.Example(inputs))
    size = np.shape(jax.tree.leaves(inputs)[0])[0]
    counted += size
    share = np.float32(size / counted)
    total = new if total is None else _averaged(total, new, share)
    seen += 1
  if total is not None:
    for norm, (mean, var) in zip(norms, total, strict=True):
      norm.mean[...] = mean.astype(norm.mean[...].dtype)
      norm.var[...] = var.astype(norm.var[...].dtype)
  return seen


def has_batch_norm(model: nnx.Module) -> bool:
  """Say whether a network has running statistics."""
  return bool(_batch_norms(model))


def warn_unmoved(before: nnx.Module, after: nnx.Module) -> None:
  """Log that a training has left all running statistics as they were."""
  pairs = list(zip(_batch_norms(before), _batch_norms(after), strict=True))
  if pairs and all(
    np.array_equal(old.mean[...], new.mean[...])
    and np.array_equal(old.var[...], new.var[...])
    for old, new in pairs
  ):
    logging.warning(
      "none of the %d batch norms has moved its statistics in training: does"
      " the loss function call the model with an argument, such as"
      " use_running_average or training=False, that overrides its mode?",
      len(pairs),
    )


def _batch_norms(model: nnx.Module) -> list[nnx.BatchNorm]:
  return [
    module
    for _, module in nnx.iter_modules(model)
    if isinstance(module, nnx.BatchNorm)
  ]


# One program for all norms: one for each shape would take longer to load than
# to run.
@jax.jit
def _merged(total: Any, new: Any, share: Any) -> Any:
  """Merge means and variances, of which the new have a share of all."""

  def merge(before, after):
    (mean, var), (new_mean, new_var) = before, after
    apart = new_mean - mean
    merged = var + share * (new_var - var) + share * (1 - share) * apart**2
    return mean + share * apart, merged

  return [merge(*pair) for pair in zip(total, new, strict=True)]


@jax.jit
def _averaged(total: Any, new: Any, share: Any) -> Any:
  return jax.tree.map(lambda a, b: a + share * (b - a), total, new)


@functools.partial(jax.jit, static_argnums=0)
def _corrected(graphdefs, states, inputs):
  """Give the statistics of all norms that one batch asks for."""
  models = [
    nnx.merge(*each, copy=True) for each in zip(graphdefs, states, strict=True)
  ]
  read: dict[int, list[Any]] = {}
  asked: dict[int, list[Any]] = {}
  running = [
    (norm.mean[...], norm.var[...]) for norm in _batch_norms(models[0])
  ]

  def note(index, norm, x):
    read.setdefault(index, []).append(_moments(norm, x))

  def correct(index, norm, x):
    calls = asked.setdefault(index, [])
    mean, var = _moments(norm, x)
    # Of a norm that is called more often, the same call.
    old_mean, old_var = read[index][len(calls)]
    ratio = jnp.where(old_var > 0, var / jnp.where(old_var > 0, old_var, 1), 1)
    # A feature of which next to nothing is left is not to be blown up.
    ratio = jnp.maximum(ratio, _SMALLEST_RATIO)
    moved = running[index][0] + mean - old_mean, running[index][1] * ratio
    norm.mean[...], norm.var[...] = moved
    calls.append(moved)

  for model, watch in ((models[1], note), (models[0], correct)):
    for index, norm in enumerate(_batch_norms(model)):
      _watch(norm, functools.partial(watch, index))
    inputs.call(model)
  return [
    # One that is not called keeps its own.
    jax.tree.map(lambda *each: sum(each) / len(each), *asked[index])
    if index in asked
    else running[index]
    for index in range(len(running))
  ]


def _moments(norm: nnx.BatchNorm, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Give mean and variance of each feature that a norm reads."""
  kept = np.atleast_1d(norm.axis) % x.ndim
  axes = tuple(axis for axis in range(x.ndim) if axis not in kept)
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return wide.mean(axis=axes), wide.var(axis=axes)


def _watch(norm: Any, tell: Any) -> None:
  """Let a norm tell what it reads before it is called, in place."""
  kind = type(norm)

  def call(self, x, *args: Any, **settings: Any):
    tell(self, x)
    return kind.__call__(self, x, *args, **settings)

  norm.__class__ = type(kind.__name__, (kind,), {"__call__": call})


# The structure is an argument, so that the policies of a network share one
# compilation.
@functools.partial(jax.jit, static_argnums=0)
def _batch_statistics(graphdef, state, inputs):
  """Give mean and variance of one batch at every batch norm."""
  model = nnx.merge(graphdef, state, copy=True)
  norms = _batch_norms(model)
  for norm in norms:
    # With a momentum of zero the running statistics are the batch's own.
    norm.momentum = 0.0
    norm.use_running_average = False
  inputs.call(model)
  return [(norm.mean[...], norm.var[...]) for norm in norms]
