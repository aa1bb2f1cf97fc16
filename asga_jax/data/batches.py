"""Batches by position, so that a resumed run sees what it would have seen."""

import functools
from collections.abc import Iterator

import jax
import numpy as np

from asga_jax.data import dataset as dataset_lib


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

  Returns:
    "image", uint8 [batch_size / process_count, H, W, C], and "label", int32
    [batch_size / process_count]: this process's slice of the batch.

  Raises:
    ValueError: if `step` is negative, or the batch cannot be drawn or divided.
  """
  if step < 0:
    raise ValueError(f"step is {step}; expected a number from 0")
  epoch, position = divmod(step, steps_per_epoch(len(split), batch_size))
  order = _permutation(len(split), seed, epoch)
  chosen = order[position * batch_size : (position + 1) * batch_size]
  mine = chosen[_share(batch_size, process_index, process_count)]
  return {"image": split.images[mine], "label": split.labels[mine]}


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
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Yield a split once, in its own order, in batches of one shape.

  Args:
    split: what to go through.
    batch_size: of all processes together.
    process_index: which process asks.
    process_count: how many share each batch; it must divide `batch_size`.

  Yields:
    "image" and "label" as `batch_at`, and "mask", float32
    [batch_size / process_count]: 1 for an image, 0 for the black images of
    label 0 that fill the last batch.

  Raises:
    ValueError: if `batch_size` is not positive or cannot be divided.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
  share = _share(batch_size, process_index, process_count)
  size = share.stop - share.start
  for start in range(0, len(split), batch_size):
    first = start + share.start
    images = split.images[first : first + size]
    labels = split.labels[first : first + size]
    missing = size - len(labels)
    yield {
      "image": np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
      "label": np.pad(labels, (0, missing)),
      "mask": (np.arange(size) < len(labels)).astype(np.float32),
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
