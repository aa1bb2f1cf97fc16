"""Accuracy of a network on a whole split."""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from asga_jax.data import batches as batches_lib
from asga_jax.data import dataset as dataset_lib
from asga_jax.training import steps


@functools.partial(jax.jit, static_argnums=(0, 2))
def _correct(graphdef, state, prepare, batch):
  """Count the right answers of a batch; padding does not count."""
  model = nnx.merge(graphdef, state, copy=True)
  data = prepare(jax.random.key(0), batch)
  right = jnp.argmax(model(data["image"]), axis=-1) == batch["label"]
  return jnp.sum(right * batch["mask"])


def accuracy(
  model: nnx.Module,
  split: dataset_lib.Split,
  prepare: steps.PrepareFn,
  *,
  batch_size: int = 250,
  batches: int = 0,
) -> float:
  """Compute the share of a split's images that a network gets right.

  Two networks of one structure, such as two policies, share one compilation
  if they are handed the same `prepare`.

  Args:
    model: a network; it is evaluated with running statistics, and not changed.
    split: images and labels.
    prepare: of (key, raw batch) to the network's input, without augmentation.
    batch_size: of one evaluation.
    batches: how many batches to take from the start; 0 for all.

  Returns:
    The accuracy, in [0, 1].
  """
  model = nnx.clone(model)
  model.eval()
  graphdef, state = nnx.split(model)
  found = []
  taken = batches_lib.eval_batches(split, batch_size)
  for batch in itertools.islice(taken, batches or None):
    right = _correct(graphdef, state, prepare, batch)
    found.append((right, batch["mask"].sum()))
  right, seen = (sum(map(float, column)) for column in zip(*found, strict=True))
  return right / seen
