"""Images that stay in their files, and are decoded when they are asked for."""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import flags, logging

from asga_jax.data import dataset as dataset_lib
from asga_jax.data import decoding, normalisations, presets


class Record(NamedTuple):
  """One image as it is stored."""

  name: str  # for errors
  encoded: bytes
  label: int


class Records(Protocol):
  """Stored images by number; worker processes get a copy."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Record:
    """Read one; raises OSError."""


class Files:
  """Records that are files of their own."""

  def __init__(
    self, root: str | os.PathLike[str], names: Iterable[str], labels: np.ndarray
  ):
    self.root = os.fspath(root)
    # A million of them in 40 MB, where strings take 150.
    self.names = np.array([os.fsencode(name) for name in names])
    self.labels = labels  # shape=(N,), dtype=int32

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> Record:
    path = os.path.join(self.root, os.fsdecode(bytes(self.names[index])))
    with open(path, "rb") as file:
      return Record(path, file.read(), int(self.labels[index]))


class Images:
  """Images that index as an array does, uint8 [N, side, side, 3].

  What `take` skips is named and counted, over all parts of a data set, in this
  process.
  """

  dtype, ndim = np.dtype(np.uint8), 4

  def __init__(
    self,
    records: Records,
    side: int,
    preset: presets.Preset,
    *,
    workers: int = 0,
    bad_images: int = 0,
  ):
    """Take records without reading them.

    Args:
      records: where images come from.
      side: height and width of what is given.
      preset: how evaluation crops and resizes.
      workers: how many processes or threads decode batches in advance; 0 for
        one thread.
      bad_images: how many images may be damaged.
    """
    self.records, self.side, self.preset = records, side, preset
    self.workers, self.bad_images = workers, bad_images
    self.bad: set[str] = set()
    self._chosen = np.arange(len(records))

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """As of the array."""
    return len(self._chosen), self.side, self.side, 3

  @property
  def size(self) -> int:
    """As of the array."""
    return math.prod(self.shape)

  def __len__(self) -> int:
    return len(self._chosen)

  def only(self, which: Any) -> "Images":
    """Give some of the images, by number or mask, without reading them."""
    part = object.__new__(Images)
    # What was found bad is shared.
    part.__dict__.update(self.__dict__, _chosen=self._chosen[which])
    return part

  def __getitem__(self, which: Any) -> np.ndarray:
    """Decode for evaluation; raises DataError for a damaged image."""
    chosen = np.arange(len(self))[which]
    if not chosen.ndim:
      return self._read(int(chosen), None)[0]
    images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
    with futures.ThreadPoolExecutor(max(1, self.workers)) as pool:
      read = pool.map(lambda index: self._read(int(index), None)[0], chosen)
      for place, image in enumerate(read):
        images[place] = image
    return images

  def take(
    self, chosen: np.ndarray, draw: tuple[int, ...] | None, replace: bool
  ) -> dict[str, Any]:
    """Decode a batch; what is damaged is skipped, for `note` to count.

    Args:
      chosen: numbers of images, shape [B].
      draw: what decides, with an image's number, which part of it is taken;
        None for that of evaluation.
      replace: whether the next whole image stands for a damaged one, with its
        own label; otherwise black of label 0 does.

    Returns:
      "image", uint8 [B, side, side, 3]; "label", int32 [B]; "whole", float32
      [B], 0 for what is black; "bad", a sentence for each damaged image.

    Raises:
      DataError: more images are damaged than may be.
    """
    images = np.zeros((len(chosen), *self.shape[1:]), np.uint8)
    labels = np.zeros(len(chosen), np.int32)
    whole = np.zeros(len(chosen), np.float32)
    bad: list[str] = []
    for place, first in enumerate(chosen):
      for further in range(len(self) if replace else 1):
        try:
          image, label = self._read((int(first) + further) % len(self), draw)
        except dataset_lib.DataError as error:
          bad.append(str(error))
          self._check(bad)
          continue
        images[place], labels[place], whole[place] = image, label, 1
        break
    return {"image": images, "label": labels, "whole": whole, "bad": bad}

  def note(self, bad: Iterable[str]) -> None:
    """Name and count damaged images that a batch skipped.

    Raises:
      DataError: with those of earlier batches there are more than may be.
    """
    for sentence in bad:
      if sentence not in self.bad:
        self.bad.add(sentence)
        self._check(self.bad)
        logging.warning(
          "%s: skipped, damaged image %d of at most %d",
          sentence,
          len(self.bad),
          self.bad_images,
        )

  def _check(self, bad: Iterable[str]) -> None:
    found = sorted({*bad})
    if len(found) > self.bad_images:
      raise dataset_lib.DataError(
        f"{len(found)} damaged image{'s' * (len(found) > 1)}, and bad_images is"
        f" {self.bad_images}: {'; '.join(found)}"
      )

  def _read(
    self, index: int, draw: tuple[int, ...] | None
  ) -> tuple[np.ndarray, int]:
    number = int(self._chosen[index])
    try:
      name, encoded, label = self.records[number]
    except OSError as error:
      raise dataset_lib.DataError(
        f"an image cannot be read: {error}"
      ) from error
    image = decoding.decode(encoded, name)
    if draw is None:
      pixels = decoding.centre(image, self.side, self.preset)
    else:
      rng = np.random.default_rng((*draw, number))
      resample = self.preset.resample
      pixels = decoding.random_crop(image, self.side, resample, rng)
    known = normalisations.NORMALISATIONS[self.preset.normalisation]
    return known.turn(pixels[None])[0], label


def prefetched(
  make: Callable[[int], dict[str, Any]],
  steps: range,
  *,
  workers: int,
  processes: bool,
) -> Iterator[dict[str, Any]]:
  """Make batches in advance, and yield them in order.

  Each is a function of its number alone, so that any number of workers gives
  the same ones, and a run goes on at any step without a saved position.

  Args:
    make: from a number to a batch; processes get a copy of it.
    steps: the numbers.
    workers: how many batches are made at the same time; 0 for one.
    processes: whether processes make them, if there are workers; else threads.
  """
  if not steps:
    return
  # A second to import, which runs on data in memory are spared.
  import grain

  processes = processes and workers > 0
  threads = 1 if processes else min(max(1, workers), len(steps))
  source = grain.MapDataset.range(steps.start, steps.stop, steps.step)
  source = source.map(make)
  batches = source.to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  )
  if processes:
    if not flags.FLAGS.is_parsed():
      # Grain reads its flags; in a program without flags nobody parses them.
      flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=min(workers, len(steps)), per_worker_buffer_size=2
      ),
      worker_init_fn=_start_worker,
    )
  with contextlib.closing(iter(batches)) as made:
    for batch in made:
      if processes:
        # Out of memory that is shared with a worker, which is little.
        for name, value in batch.items():
          if isinstance(value, np.ndarray):
            batch[name] = np.array(value)
      yield batch


def _start_worker(index: int, count: int) -> None:
  """Leave signals to the parent process, and end when that has ended."""
  del index, count
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def follow() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()
