"""Batch norm's running statistics, taken anew at other bits."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx

from asga_jax import checks
from asga_jax.network import arguments, examples, program
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
  while bits were still mixed. Mean and variance are those over all that a norm
  reads of all batches, in all its calls, so the variance has that of the means
  between batches in it. (Each batch is still normalised by its own statistics
  on its way to the norms that follow, as in training. Of a norm that is called
  several times within scan or remat, the last call counts.)

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
  seen = 0
  total, counted = None, np.zeros(len(norms))
  for inputs in batches:
    example = examples.as_example(inputs)
    try:
      new, counts = _batch_statistics(graphdef, state, example)
    except (TypeError, ValueError) as error:
      reason = checks.reason(error)
      raise ValueError(
        f"{type(model).__name__} does not run on a batch, {example.describe()}:"
        f" {reason}; {examples.ACCEPTED}"
      ) from error
    counts = np.asarray(counts)
    counted += counts
    shares = (counts / np.maximum(counted, 1)).astype(np.float32)
    total = new if total is None else _merged_all(total, new, shares)
    seen += 1
  if total is None:
    return 0
  for norm, (mean, var) in zip(norms, total, strict=True):
    norm.mean[...] = mean
    norm.var[...] = var
  if not counted.any():
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


def use_batch_statistics(model: nnx.Module) -> None:
  """Let all norms use the statistics of each batch, in evaluation mode too."""
  for norm in _batch_norms(model):
    norm.use_running_average = False


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


def _merged(before: Any, new: Any, share: Any) -> Any:
  """Merge two pairs of mean and variance, of which the new has a share."""
  (mean, var), (new_mean, new_var) = before, new
  apart = new_mean - mean
  merged = var + share * (new_var - var) + share * (1 - share) * apart**2
  return mean + share * apart, merged


# One program for all norms: one for each shape would take longer to load than
# to run.
@jax.jit
def _merged_all(total: Any, new: Any, shares: Any) -> Any:
  """Merge the pairs of all norms."""
  return [_merged(*each) for each in zip(total, new, shares, strict=True)]


# The structure is an argument, so that the policies of a network share one
# compilation.
@functools.partial(jax.jit, static_argnums=0)
def _batch_statistics(graphdef, state, inputs):
  """Give mean, variance and number of values of one batch at every norm."""
  model = nnx.merge(graphdef, state, copy=True)
  norms = _batch_norms(model)
  counts = np.zeros(len(norms))
  for index, norm in enumerate(norms):
    # With a momentum of zero the running statistics are the batch's own.
    norm.momentum = 0.0
    norm.use_running_average = False
    _pool_calls(norm, counts[index : index + 1])
  inputs.call(model)
  found = [(norm.mean[...], norm.var[...]) for norm in norms]
  return found, jax.numpy.asarray(counts)


def _pool_calls(norm: Any, count: np.ndarray) -> None:
  """Let a norm gather its calls, using each batch whatever it is told.

  Args:
    norm: with a momentum of zero; of another class after this.
    count: shape (1,), to be raised by how many values of a feature it reads.
  """
  kind = type(norm)
  is_outside = program.here()

  def call(self, x, *flag: Any, **settings: Any):
    settings.pop("use_running_average", None)
    before = self.mean[...], self.var[...]
    result = kind.__call__(self, x, *(False for _ in flag), **settings)
    size = x.size / before[0].size
    # What is traced again within scan or remat is not another call.
    if count[0] and is_outside():
      share = size / (count[0] + size)
      new = self.mean[...], self.var[...]
      self.mean[...], self.var[...] = _merged(before, new, share)
      count[0] += size
    else:
      count[0] = size
    return result

  norm.__class__ = type(kind.__name__, (kind,), {"__call__": call})
