"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import functools
import os
import pathlib
from typing import Any

import numpy as np
from absl import logging

from asga_jax.data import dataset as dataset_lib
from asga_jax.data import embedded, presets, streamed

DATA_DIR_VARIABLE = "ASGA_DATA_DIR"

_CHUNK = 1000


def load_tfds(
  name: str, *, data_dir: str | os.PathLike | None = None
) -> dataset_lib.Dataset:
  """Read a prepared image classification data set into memory.

  Args:
    name: as in TFDS: "cifar10", "cifar10/3.0.2", "name/config" or
      "name/config/version". Without a version the newest one prepared is read.
    data_dir: the TFDS data directory; None takes it from the environment
      variable ASGA_DATA_DIR.

  Returns:
    The data set. Its test part is the split "test", or "validation" where
    there is no "test".

  Raises:
    DataError: if it is not there, not readable without TensorFlow, or holds
      something else than images of one shape with one label each.
  """
  builder, test_split = _open(name, data_dir)
  train_images, train_labels = _read(name, builder, "train")
  test_images, test_labels = _read(name, builder, test_split)
  return dataset_lib.Dataset(
    name=name,
    train_images=train_images,
    train_labels=train_labels,
    test_images=test_images,
    test_labels=test_labels,
    class_names=tuple(builder.info.features["label"].names),
    test_split=test_split,
  )


def stream_tfds(
  name: str,
  size: int,
  preset: presets.Preset,
  *,
  data_dir: str | os.PathLike | None = None,
  workers: int = 0,
  bad_images: int = 0,
) -> dataset_lib.Dataset:
  """Open a prepared data set whose images are decoded when they are needed.

  Args:
    name: see `load_tfds`.
    size: of the images, which may be stored in any.
    preset: how they are cropped and resized.
    data_dir: see `load_tfds`.
    workers: see `streamed.Images`.
    bad_images: see `streamed.Images`.

  Raises:
    DataError: see `load_tfds`.
  """
  builder, test_split = _open(name, data_dir)
  parts = [Records(name, builder, split) for split in ("train", test_split)]
  train, test = (
    streamed.Images(part, size, preset, workers=workers, bad_images=bad_images)
    for part in parts
  )
  return dataset_lib.Dataset(
    name=name,
    train_images=train,
    train_labels=Labels(parts[0]),
    test_images=test,
    test_labels=Labels(parts[1]),
    class_names=tuple(builder.info.features["label"].names),
    test_split=test_split,
  )


class Records:
  """The encoded images of a split, see `streamed.Records`."""

  def __init__(self, name: str, builder: Any, split: str):
    import tensorflow_datasets as tfds

    self.name = f"{name}, {split}"
    encoded = {"image": tfds.decode.SkipDecoding()}
    self.source = builder.as_data_source(split=split, decoders=encoded)

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> streamed.Record:
    found: Any = self.source[index]
    name = f"{self.name}, image {index}"
    return streamed.Record(name, found["image"], int(found["label"]))


class Labels:
  """The labels of a split, int32 [N]: all are read where one is asked for.

  They stand in the same records as the images, which is a lot to read; batches
  have their own.
  """

  dtype, ndim = np.dtype(np.int32), 1

  def __init__(self, records: Records):
    self._records = records
    self.shape = (len(records),)

  def __len__(self) -> int:
    return len(self._records)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
    return np.array(self._read, dtype)

  def __getitem__(self, which: Any) -> Any:
    return self._read[which]

  @functools.cached_property
  def _read(self) -> np.ndarray:
    logging.info("reading the labels of %s", self._records.name)
    source, count = self._records.source, len(self)
    found = np.empty(count, np.int32)
    for start in range(0, count, _CHUNK):
      chunk = range(start, min(start + _CHUNK, count))
      found[chunk.start : chunk.stop] = [
        record["label"] for record in source.__getitems__(chunk)
      ]
    return found


def describe_tfds(
  name: str, *, data_dir: str | os.PathLike | None = None
) -> dataset_lib.DatasetInfo:
  """Tell what the metadata and the first image say; see `load_tfds`."""
  builder, _ = _open(name, data_dir)
  source = builder.as_data_source(split="train")
  image: Any = source[0]["image"] if len(source) else np.empty(0)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
    # Which says what is wrong.
    return load_tfds(name, data_dir=data_dir).info
  height, width, channels = image.shape
  return dataset_lib.DatasetInfo(
    name=name,
    image_shape=(height, width, channels),
    class_names=tuple(builder.info.features["label"].names),
    train_images=len(source),
  )


def _open(name: str, data_dir: str | os.PathLike | None) -> tuple[Any, str]:
  """Return the builder, checked, and the name of the test part."""
  path = _find(name, data_dir)
  # Seconds to import, and most runs read no TFDS data set.
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(path)
  except Exception as error:
    raise dataset_lib.DataError(
      f"data set {name!r}: {path} is not readable as a TFDS data set "
      f"({error}). {_how_to_prepare(name)}"
    ) from error
  _check_features(name, builder, tfds)
  test_split = "test" if "test" in builder.info.splits else "validation"
  for split in ("train", test_split):
    if split not in builder.info.splits:
      raise dataset_lib.DataError(
        f"data set {name!r} in {path}: expected a split 'train' and a split "
        f"'test' or 'validation'; found {', '.join(builder.info.splits)}"
      )
  return builder, test_split


def _find(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
  """Return the directory of the newest prepared version."""
  root = data_dir or os.environ.get(DATA_DIR_VARIABLE)
  if not root:
    raise dataset_lib.DataError(
      f"data set {name!r} does not come with the package (these do: "
      f"{', '.join(embedded.SOURCES)}), and there is no data directory to "
      f"look in: pass data_dir or set {DATA_DIR_VARIABLE}. "
      f"{_how_to_prepare(name)}"
    )
  base = pathlib.Path(root).expanduser() / name
  if (base / "dataset_info.json").is_file():
    return base
  versions = [info.parent for info in base.glob("*/dataset_info.json")]
  if not versions:
    raise dataset_lib.DataError(
      f"data set {name!r} not found: it does not come with the package (these "
      f"do: {', '.join(embedded.SOURCES)}), and there is neither "
      f"{base}/dataset_info.json nor {base}/VERSION/dataset_info.json. "
      f"{_how_to_prepare(name)}"
    )
  return max(versions, key=_version)


def _version(path: pathlib.Path) -> tuple[int, ...]:
  parts = path.name.split(".")
  return tuple(int(part) if part.isdigit() else -1 for part in parts)


def _how_to_prepare(name: str) -> str:
  return (
    "To prepare a TFDS data set, once, where TensorFlow is installed: "
    "python -c \"import tensorflow_datasets as tfds; tfds.load('"
    f"{name}', data_dir='DIR', "
    "builder_kwargs={'file_format': 'array_record'})\"; "
    "reading it needs no TensorFlow"
  )


def _check_features(name: str, builder: Any, tfds: Any) -> None:
  """Raise DataError unless there are an image and a class label to read."""
  features = builder.info.features
  found = dict(features) if hasattr(features, "keys") else {}
  if not (
    isinstance(found.get("image"), tfds.features.Image)
    and isinstance(found.get("label"), tfds.features.ClassLabel)
  ):
    raise dataset_lib.DataError(
      f"data set {name!r}: expected the features 'image' (an image) and "
      f"'label' (a class label); found {' '.join(str(features).split())}"
    )
  file_format = builder.info.file_format
  if file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise dataset_lib.DataError(
      f"data set {name!r} in {builder.data_dir}: expected the file format "
      f"array_record; found {file_format.value}, which only TensorFlow reads. "
      f"{_how_to_prepare(name)}"
    )


def _read(name: str, builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Decode a split into images [N, H, W, C] uint8 and labels [N] int32."""
  source = builder.as_data_source(split=split)
  count = len(source)
  images = np.empty(0)
  labels = np.empty(count, np.int32)
  for start in range(0, count, _CHUNK):
    # Whole chunks, since single reads take three times as long.
    records = source.__getitems__(range(start, min(start + _CHUNK, count)))
    for i, record in enumerate(records, start):
      image = record["image"]
      if i == 0:
        images = np.empty((count, *image.shape), np.uint8)
      if image.shape != images.shape[1:] or image.dtype != np.uint8:
        raise dataset_lib.DataError(
          f"data set {name!r}, split {split!r}: expected every image to be "
          f"uint8 of shape {list(images.shape[1:])}, that of the first; found "
          f"{image.dtype} of shape {list(image.shape)} at {i}"
        )
      images[i] = image
      labels[i] = record["label"]
  return images, labels
