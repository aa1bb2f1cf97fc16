"""What a data set is, and its three parts in a search."""

import dataclasses
import functools
from typing import Any, TypeAlias

import numpy as np

# An array, or what indexes like one: `streamed.Images`, and the labels that
# TFDS stores beside these.
Images: TypeAlias = np.ndarray | Any
Labels: TypeAlias = np.ndarray | Any


class DataError(ValueError):
  """A data set that is missing, unprepared or not of the expected form."""


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """What is known of a data set before its images are read."""

  name: str
  image_shape: tuple[int, int, int]  # [H, W, C] as stored
  class_names: tuple[str, ...]
  train_images: int  # how many
  # Whether a mirrored image still shows its class: digits do not.
  flip: bool = True

  @property
  def num_classes(self) -> int:
    """Number of classes."""
    return len(self.class_names)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
  """Labelled images, in memory or `streamed.Images`.

  Invariants, checked: images are uint8 of one shape [N, H, W, C] with C of 1
  or 3, labels int32 in [0, num_classes), and no part is empty.
  """

  name: str
  train_images: Images  # shape=(N, H, W, C), dtype=uint8
  train_labels: Labels  # shape=(N,), dtype=int32
  test_images: Images  # shape=(M, H, W, C), dtype=uint8
  test_labels: Labels  # shape=(M,), dtype=int32
  class_names: tuple[str, ...]
  flip: bool = True  # see `DatasetInfo`
  # The name the source gives to the part that only reports.
  test_split: str = "test"
  # Mean and deviation of each channel to normalise by, of pixels / 255; None
  # for those of the training images.
  moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None

  def __post_init__(self):
    shape = self.train_images.shape[1:]
    for part in ("train", "test"):
      images = getattr(self, f"{part}_images")
      labels = getattr(self, f"{part}_labels")
      where = f"data set {self.name!r}, {part}"
      if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise DataError(
          f"{where}: images must be uint8 of shape [N, H, W, C] with N > 0; "
          f"found {images.dtype} of shape {list(images.shape)}"
        )
      if images.shape[1:] != shape or shape[-1] not in (1, 3):
        raise DataError(
          f"{where}: images must have one shape [H, W, C] with 1 or 3 "
          f"channels; found {list(images.shape[1:])} beside {list(shape)}"
        )
      if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
        raise DataError(
          f"{where}: labels must be int32 of shape [{len(images)}]; found "
          f"{labels.dtype} of shape {list(labels.shape)}"
        )
      # Others were checked when they were listed or written.
      if isinstance(labels, np.ndarray) and (
        labels.min() < 0 or labels.max() >= self.num_classes
      ):
        raise DataError(
          f"{where}: labels must lie in [0, {self.num_classes}); found "
          f"{labels.min()} to {labels.max()}"
        )
    if self.moments and any(len(each) != shape[-1] for each in self.moments):
      raise DataError(
        f"data set {self.name!r}: its normalisation is of "
        f"{len(self.moments[0])} channels; found images of {shape[-1]}"
      )

  @property
  def num_classes(self) -> int:
    """Number of classes."""
    return len(self.class_names)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Shape [H, W, C] as stored, before `preprocess`."""
    height, width, channels = self.train_images.shape[1:]
    return height, width, channels

  @property
  def info(self) -> DatasetInfo:
    """What was known before the images were read."""
    return DatasetInfo(
      name=self.name,
      image_shape=self.image_shape,
      class_names=self.class_names,
      train_images=len(self.train_images),
      flip=self.flip,
    )

  @functools.cached_property
  def mean(self) -> tuple[float, ...]:
    """What is subtracted from each stored channel of pixels / 255."""
    if self.moments:
      return self.moments[0]
    levels = np.arange(256) / 255.0
    return tuple((self._pixel_shares @ levels).tolist())

  @functools.cached_property
  def std(self) -> tuple[float, ...]:
    """What each stored channel of pixels / 255 is then divided by."""
    if self.moments:
      return self.moments[1]
    distances = np.arange(256) / 255.0 - np.asarray(self.mean)[:, None]
    variance = (self._pixel_shares * distances**2).sum(axis=1)
    return tuple(np.sqrt(variance).tolist())

  @functools.cached_property
  def _pixel_shares(self) -> np.ndarray:
    """Share of each of the 256 levels in each channel, shape [C, 256]."""
    counts = np.zeros((self.image_shape[2], 256))
    # By chunks, since bincount copies to 64-bit integers.
    for start in range(0, len(self.train_images), 1000):
      chunk = self.train_images[start : start + 1000]
      for channel, count in enumerate(counts):
        count += np.bincount(chunk[..., channel].ravel(), minlength=256)
    return counts / counts.sum(axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Split:
  """Images and labels of one purpose."""

  images: Images  # shape=(N, H, W, C), dtype=uint8
  labels: Labels  # shape=(N,), dtype=int32

  def __len__(self) -> int:
    return len(self.labels)

  def only(self, which: np.ndarray) -> "Split":
    """Give the images of a mask, shape [N]; streamed ones are not read."""
    if isinstance(self.images, np.ndarray):
      return Split(self.images[which], self.labels[which])
    if which.all():
      return self
    # Their labels may have to be read, which none is no reason for.
    labels = self.labels[which] if which.any() else np.empty(0, np.int32)
    return Split(self.images.only(which), labels)

  def take(
    self,
    which: np.ndarray | slice,
    *,
    draw: tuple[int, ...] | None = None,
    replace: bool = True,
  ) -> dict[str, Any]:
    """Give images and labels of a batch.

    Args:
      which: numbers of images.
      draw: see `streamed.Images.take`; of no matter to images in memory.
      replace: likewise.

    Returns:
      "image" and "label"; of streamed images "whole" and "bad" as well.
    """
    if isinstance(self.images, np.ndarray):
      return {"image": self.images[which], "label": self.labels[which]}
    chosen = np.arange(len(self))[which]
    found: dict[str, Any] = self.images.take(chosen, draw, replace)
    return found


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Splits:
  """The three parts of a proxy; no image stands in two of them."""

  # Trains the weights.
  train: Split
  # Trains the bit-choice logits of a bilevel search; empty for a joint one.
  heldout: Split
  # The source's own test part: never trained on, only reported.
  report: Split


def split_proxy(
  dataset: Dataset, *, heldout_fraction: float, seed: int
) -> Splits:
  """Part the training images of a proxy, every class in the same proportion.

  Args:
    dataset: the proxy.
    heldout_fraction: share in [0, 1) of each class's training images that goes
      to `heldout`, rounded to whole images.
    seed: of the choice.

  Returns:
    The three parts; train and held-out keep the source's order.

  Raises:
    ValueError: if the fraction is outside [0, 1).
    DataError: if a positive fraction leaves a class without an image in train
      or in held-out.
  """
  if not 0 <= heldout_fraction < 1:
    raise ValueError(
      f"heldout_fraction is {heldout_fraction}; expected a share in [0, 1)"
    )
  generator = np.random.default_rng(seed)
  held = np.zeros(len(dataset.train_labels), bool)
  labels = np.asarray(dataset.train_labels if heldout_fraction else ())
  for label, name in enumerate(dataset.class_names):
    members = np.flatnonzero(labels == label)
    count = round(heldout_fraction * len(members))
    if heldout_fraction and len(members) and count in (0, len(members)):
      raise DataError(
        f"heldout_fraction is {heldout_fraction}: it puts {count} of the "
        f"{len(members)} training images of class {name!r} of "
        f"{dataset.name!r} into held-out; expected some and not all"
      )
    held[generator.permutation(members)[:count]] = True
  whole = Split(dataset.train_images, dataset.train_labels)
  return Splits(
    train=whole.only(~held),
    heldout=whole.only(held),
    report=Split(dataset.test_images, dataset.test_labels),
  )
