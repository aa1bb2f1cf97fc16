"""Batch norm's running statistics, taken anew at other bits."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx

from asga_jax import checks
from asga_jax.network import arguments, examples
from asga_jax.xla import promotion


def reestimated(model: nnx.Module, batches: Iterable[Any]) -> nnx.Module:
  """Take batch norm's running statistics anew from a few batches.

  Training at fewer bits moves what a norm reads away from the statistics that
  were gathered on the way; this is what the commands do before they report an
  accuracy. It needs images that the network was trained on: for others, and
  where nothing is trained, see `correct_bias`.

  Args:
    model: any network, best at its policy; it is not changed.
    batches: inputs of the network, without augmentation, float32 of shape
      (batch, ...). Ten batches of 250 images are what the commands take.

  Returns:
    A copy in evaluation mode: means and variances over all examples of all
    batches; as before where there is no batch norm.

  Raises:
    ValueError: there are norms but no batches.
  """
  arguments.check_module(model)
  copy = nnx.clone(model)
  seen = reestimate_batch_norm(copy, batches)
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
  examples.check_batches(batches)
  norms = _batch_norms(model)
  model.eval()
  if not norms:
    return 0
  graphdef, state = nnx.split(model)
  seen, counted = 0, 0
  total, reached = None, False
  for inputs in batches:
    example = examples.as_example(inputs)
    try:
      new, called = _batch_statistics(graphdef, state, example)
    except (TypeError, ValueError) as error:
      reason = checks.reason(error)
      raise ValueError(
        f"{type(model).__name__} does not run on a batch, {example.describe()}:"
        f" {reason}; {examples.ACCEPTED}"
      ) from error
    reached |= bool(called.any())
    size = example.batch()
    counted += size
    share = np.float32(size / counted)
    total = new if total is None else _merged(total, new, share)
    seen += 1
  if total is None:
    return 0
  for norm, (mean, var) in zip(norms, total, strict=True):
    norm.mean[...] = mean
    norm.var[...] = var
  if not reached:
    logging.warning(
      "none of the %d batch norms of %s has moved its statistics: the call of"
      " the model reaches none",
      len(norms),
      type(model).__name__,
    )
  return seen


def has_batch_norm(model: nnx.Module) -> bool:
  """Say whether a network has running statistics."""
  return bool(_batch_norms(model))


def freeze(model: nnx.Module) -> None:
  """Let all norms use their running statistics, in training mode too."""
  for norm in _batch_norms(model):
    norm.use_running_average = True


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


# The structure is an argument, so that the policies of a network share one
# compilation.
@functools.partial(jax.jit, static_argnums=0)
def _batch_statistics(graphdef, state, inputs):
  """Give mean and variance of one batch at every norm, and which are called."""
  model = nnx.merge(graphdef, state, copy=True)
  norms = _batch_norms(model)
  called = np.zeros(len(norms), bool)
  for index, norm in enumerate(norms):
    # With a momentum of zero the running statistics are the batch's own.
    norm.momentum = 0.0
    norm.use_running_average = False
    _note_calls(norm, functools.partial(called.__setitem__, index, True))
  inputs.call(model)
  found = [(norm.mean[...], norm.var[...]) for norm in norms]
  return found, jax.numpy.asarray(called)


def _note_calls(norm: Any, note: Callable[[], None]) -> None:
  """Tell of calls of a norm, which then uses its batch whatever it is told."""
  kind = type(norm)

  def call(self, x, *flag: Any, **settings: Any):
    note()
    settings.pop("use_running_average", None)
    return kind.__call__(self, x, *(False for _ in flag), **settings)

  norm.__class__ = type(kind.__name__, (kind,), {"__call__": call})
