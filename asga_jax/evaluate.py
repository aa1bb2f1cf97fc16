"""How good a network is on a split: loss, top-1, top-5, confusion matrix."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from asga_jax.data import batches as batches_lib
from asga_jax.data import dataset as dataset_lib
from asga_jax.training import sharding, steps


class Evaluation(NamedTuple):
  """What a network does on a split."""

  images: int
  top1: float  # share of images whose class has the highest logit, in [0, 1]
  top5: float  # share of images whose class has one of the five highest
  loss: float  # mean cross-entropy, in nats
  # How many images of a class (row) are taken for a class (column): shape
  # (classes, classes), int64.
  confusion: np.ndarray
  # Which images it gets right, in the order of the split: shape (images,),
  # bool. Two networks are compared by it image by image.
  correct: np.ndarray

  def figures(self) -> dict[str, float]:
    """Give the shares and the loss by name, for JSON."""
    return {"top1": self.top1, "top5": self.top5, "loss": self.loss}


@functools.partial(jax.jit, static_argnums=(0, 2))
def _measure(graphdef, state, prepare, batch):
  """Sum loss and right answers of a batch; confusions, and what is right."""
  model = nnx.merge(graphdef, state, copy=True)
  logits = model(prepare(jax.random.key(0), batch)["image"])
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  labels, mask = batch["label"], batch["mask"]
  classes = logits.shape[-1]
  own = jnp.take_along_axis(logits, labels[:, None], axis=1)
  # Of equal logits the first is taken for the higher, as by argmax.
  before = jnp.arange(classes) < labels[:, None]
  rank = jnp.sum((logits > own) | ((logits == own) & before), axis=1)
  # No comparison holds with a NaN, and no image is to count as right for it.
  rank = jnp.where(jnp.isnan(logits).any(axis=1), classes, rank)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  confusion = jnp.zeros((classes, classes))
  confusion = confusion.at[labels, jnp.argmax(logits, axis=1)].add(mask)
  sums = {
    "top1": jnp.sum((rank < 1) * mask),
    "top5": jnp.sum((rank < 5) * mask),
    # Not losses * mask, where a NaN of the padding would stay.
    "loss": jnp.sum(jnp.where(mask > 0, losses, 0)),
  }
  return sums, confusion, rank < 1


def evaluate(
  model: nnx.Module,
  split: dataset_lib.Split,
  prepare: steps.PrepareFn,
  *,
  batch_size: int = 250,
  batches: int = 0,
) -> Evaluation:
  """Evaluate a classifier on a split.

  Of several processes, which must all call it, each takes its share of the
  batches; every image is counted once, and in the order of one process.

  Two networks of one structure, such as two policies, share one compilation
  if they are handed the same `prepare`.

  Args:
    model: a network; it is evaluated with running statistics, and not changed.
    split: images and labels.
    prepare: of (key, raw batch) to the network's input, without augmentation.
    batch_size: of one evaluation.
    batches: how many batches to take from the start; 0 for all.

  Returns:
    The figures. An image at which a logit is NaN is wrong.

  Raises:
    ValueError: a label that the network has no logit for.
  """
  model = nnx.clone(model)
  model.eval()
  graphdef, state = nnx.split(model)
  count = -(-len(split) // batch_size)
  count = min(count, batches or count)
  shape = (batch_size, *split.images.shape[1:])
  like = {
    "image": jax.ShapeDtypeStruct(shape, np.uint8),
    "label": jax.ShapeDtypeStruct(shape[:1], np.int32),
    "mask": jax.ShapeDtypeStruct(shape[:1], np.float32),
  }
  shapes = _measure.eval_shape(graphdef, state, prepare, like)
  classes = len(shapes[1])
  found = _Found(
    sums={name: np.zeros(count) for name in shapes[0]},
    confusion=np.zeros((classes, classes), np.int64),
    right=np.zeros((count, batch_size), bool),
    counted=np.zeros((count, batch_size), bool),
  )
  own = range(jax.process_index(), count, jax.process_count())
  taken = batches_lib.eval_batches(split, batch_size, numbers=own)
  for number, batch in zip(own, taken, strict=True):
    _check_labels(batch["label"], classes)
    sums, counts, right = _measure(graphdef, state, prepare, batch)
    for name, value in sums.items():
      found.sums[name][number] = value
    found.confusion[...] += np.asarray(counts, np.int64)
    found.right[number], found.counted[number] = right, batch["mask"] > 0
  found = sharding.summed(found)
  seen = int(found.counted.sum())
  return Evaluation(
    images=seen,
    confusion=found.confusion,
    correct=found.right[found.counted],
    **{name: float(np.cumsum(x)[-1]) / seen for name, x in found.sums.items()},
  )


class _Found(NamedTuple):
  """What a process has found out about its batches; zero for the others."""

  sums: dict[str, np.ndarray]  # shapes=(batches,)
  confusion: np.ndarray  # shape=(classes, classes), dtype=int64
  right: np.ndarray  # shape=(batches, batch_size), dtype=bool
  # Not what fills a batch up, or stands for a damaged image; likewise.
  counted: np.ndarray


def _check_labels(labels: np.ndarray, classes: int) -> None:
  lowest, highest = int(labels.min()), int(labels.max())
  if lowest < 0 or highest >= classes:
    raise ValueError(
      f"a batch has labels from {lowest} to {highest} and the network"
      f" {classes} classes; expected labels from 0 and a network with a logit"
      " for each"
    )


def accuracy(
  model: nnx.Module,
  split: dataset_lib.Split,
  prepare: steps.PrepareFn,
  *,
  batch_size: int = 250,
  batches: int = 0,
) -> float:
  """Compute the share of a split's images that a network gets right.

  Args:
    model: see `evaluate`.
    split: see `evaluate`.
    prepare: see `evaluate`.
    batch_size: see `evaluate`.
    batches: see `evaluate`.

  Returns:
    The accuracy, in [0, 1].
  """
  found = evaluate(
    model, split, prepare, batch_size=batch_size, batches=batches
  )
  return found.top1


def norm_inputs(
  split: dataset_lib.Split,
  prepare: steps.PrepareFn,
  *,
  batch_size: int,
  batches: int,
  seed: int,
) -> Iterator[jax.Array]:
  """Yield inputs for `batch_norm.reestimate_batch_norm`.

  Args:
    split: the training images.
    prepare: of (key, raw batch) to the network's input, without augmentation.
    batch_size: of each.
    batches: how many.
    seed: of their order.
  """
  for raw in batches_lib.batches_at(
    split, range(batches), batch_size=batch_size, seed=seed
  ):
    yield prepare(jax.random.key(0), raw)["image"]
