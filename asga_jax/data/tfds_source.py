"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import os
import pathlib
from typing import Any

import numpy as np

from asga_jax.data import dataset as dataset_lib
from asga_jax.data import embedded

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
