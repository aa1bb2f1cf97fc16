"""Batches by position, so that a resumed run sees what it would have seen."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from asga_jax.data import dataset as dataset_lib
from asga_jax.data import streamed


def steps_per_epoch(images: int, batch_size: int) -> int:
  """Count the whole batches of one epoch; the remainder is left out.

  Args:
    images: of the split.
    batch_size: of all processes together.

  Raises:
    ValueError: if `batch_size` is not in [1, images].
  """
  if not 1 <= batch_size <= images:
    raise ValueError(
      f"batch_size is {batch_size}; expected 1 to {images}, the number of "
      "images of the split"
    )
  return images // batch_size


def batch_at(
  split: dataset_lib.Split,
  step: int,
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  crops: bool = False,
) -> dict[str, np.ndarray]:
  """Return the training batch of one step.

  Each epoch goes once through a permutation that depends on the seed and the
  epoch's number alone, without the incomplete batch at its end.

  Args:
    split: what to draw from.
    step: number of the step from the start of the run, from 0.
    batch_size: of all processes together.
    seed: of the order.
    process_index: which process asks.
    process_count: how many share the batch; it must divide `batch_size`.
    crops: whether of streamed images a random part is taken, which the seed,
      the epoch and the image decide; otherwise what evaluation sees.

  Returns:
    "image", uint8 [batch_size / process_count, H, W, C], and "label", int32
    [batch_size / process_count]: this process's slice of the batch.

  Raises:
    ValueError: if `step` is negative, or the batch cannot be drawn or divided,
      or more images are damaged than may be.
  """
  batch = _batch_at(
    split, step, batch_size, seed, process_index, process_count, crops
  )
  return _counted(split, batch)


def batches_at(
  split: dataset_lib.Split,
  steps: range,
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  crops: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
  """Yield the batches of steps in order; streamed ones are made in advance.

  Args:
    split: see `batch_at`.
    steps: their numbers.
    batch_size: see `batch_at`.
    seed: see `batch_at`.
    process_index: see `batch_at`.
    process_count: see `batch_at`.
    crops: see `batch_at`; such batches are made by processes of their own, if
      the images ask for workers.

  Raises:
    ValueError: see `batch_at`.
  """
  place: Any = {
    "batch_size": batch_size,
    "seed": seed,
    "process_index": process_index,
    "process_count": process_count,
    "crops": crops,
  }
  if not isinstance(split.images, streamed.Images):
    for step in steps:
      yield batch_at(split, step, **place)
    return
  for batch in streamed.prefetched(
    functools.partial(_batch_at, split, **place),
    steps,
    workers=split.images.workers,
    processes=crops,
  ):
    yield _counted(split, batch)


def _counted(
  split: dataset_lib.Split, batch: dict[str, Any]
) -> dict[str, np.ndarray]:
  """Count the damaged images of a batch, and keep what is one of others."""
  if isinstance(split.images, streamed.Images):
    split.images.note(batch.pop("bad"))
    batch.pop("whole")
  return batch


def _batch_at(
  split: dataset_lib.Split,
  step: int,
  batch_size: int,
  seed: int,
  process_index: int,
  process_count: int,
  crops: bool,
) -> dict[str, Any]:
  if step < 0:
    raise ValueError(f"step is {step}; expected a number from 0")
  epoch, position = divmod(step, steps_per_epoch(len(split), batch_size))
  order = _permutation(len(split), seed, epoch)
  chosen = order[position * batch_size : (position + 1) * batch_size]
  mine = chosen[_share(batch_size, process_index, process_count)]
  return split.take(mine, draw=(seed, epoch) if crops else None)


def statistics(
  dataset: dataset_lib.Dataset, count: int
) -> dict[str, np.ndarray]:
  """Give what images are normalised by, once an image, to go with a batch.

  So it is split over devices as images are, and a step that takes it from its
  batch can be compiled before any data are read.

  Args:
    dataset: the images are of.
    count: of images in the batch, or in this process's share of it.

  Returns:
    "mean" and "std", float32 [count, C].
  """
  return {
    "mean": np.tile(np.asarray(dataset.mean, np.float32), (count, 1)),
    "std": np.tile(np.asarray(dataset.std, np.float32), (count, 1)),
  }


def batch_shapes(
  info: dataset_lib.DatasetInfo, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Tell what batches with `statistics` look like, of all processes together.

  Args:
    info: of the data set.
    batch_size: of all processes together.

  Returns:
    Shape and dtype of "image", "label", "mean" and "std".
  """
  channels = info.image_shape[2]
  return {
    "image": jax.ShapeDtypeStruct((batch_size, *info.image_shape), np.uint8),
    "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
    "mean": jax.ShapeDtypeStruct((batch_size, channels), np.float32),
    "std": jax.ShapeDtypeStruct((batch_size, channels), np.float32),
  }


def eval_batches(
  split: dataset_lib.Split,
  batch_size: int,
  *,
  numbers: range | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Yield a split once, in its own order, in batches of one shape.

  Args:
    split: what to go through.
    batch_size: of every batch.
    numbers: of the batches to yield; None for all.

  Yields:
    "image" and "label" as `batch_at`, and "mask", float32 [batch_size]: 1 for
    an image, 0 for the black images of label 0 that fill the last batch, or
    stand for damaged ones.

  Raises:
    ValueError: if `batch_size` is not positive, or more images are damaged than
      may be.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
  make = functools.partial(_eval_batch, split, batch_size)
  if numbers is None:
    numbers = range(-(-len(split) // batch_size))
  made: Iterator[dict[str, Any]] = map(make, numbers)
  if isinstance(split.images, streamed.Images):
    made = streamed.prefetched(
      make, numbers, workers=split.images.workers, processes=False
    )
  for batch in made:
    yield _counted(split, batch)


def _eval_batch(
  split: dataset_lib.Split, batch_size: int, number: int
) -> dict[str, Any]:
  first = number * batch_size
  batch = split.take(slice(first, first + batch_size), replace=False)
  images, labels = batch["image"], batch["label"]
  missing = batch_size - len(labels)
  mask = batch.get("whole", np.ones(len(labels), np.float32))
  return {
    **batch,
    "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
    "label": np.pad(labels, (0, missing)),
    "mask": np.pad(mask, (0, missing)),
  }


# Two splits in turn, each at the border of two epochs.
@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(count)


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
  """Return the positions of a batch that belong to one process."""
  if process_count < 1 or batch_size % process_count:
    raise ValueError(
      f"batch_size is {batch_size}; expected a multiple of process_count, "
      f"{process_count}"
    )
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index is {process_index}; expected 0 to {process_count - 1}"
    )
  size = batch_size // process_count
  return slice(process_index * size, (process_index + 1) * size)
