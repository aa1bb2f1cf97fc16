"""Labelled images, one function per source, and their batches."""

import dataclasses
import os
from typing import Any

from asga_jax.data import (
  dataset,
  embedded,
  image_files,
  normalisations,
  presets,
  tfds_source,
)

DataError = dataset.DataError
Dataset = dataset.Dataset
DatasetInfo = dataset.DatasetInfo
Split = dataset.Split
Splits = dataset.Splits
split_proxy = dataset.split_proxy


def load(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  size: int = 224,
  crop: float = 1.0,
  normalisation: str = "",
  preset: str = "",
  classes: int = 0,
) -> dataset.Dataset:
  """Read a data set into memory.

  Args:
    name: one of `embedded.SOURCES`, what TFDS calls it, or two lists or folders
      of image files, 'TRAIN.csv,TEST.csv' or 'TRAIN,VAL', see
      `image_files.load`.
    data_dir: the TFDS data directory, for others than the embedded; None takes
      it from the environment variable ASGA_DATA_DIR. Of image files the folder
      that their names are relative to.
    size: of image files, height and width.
    crop: of image files, see `csv_source.decode`.
    normalisation: one of `normalisations.NORMALISATIONS`; '' for mean and
      deviation of the training images.
    preset: one of `presets.PRESETS`, in place of the two above; '' for them.
    classes: of image files, how many there are; 0 for those that they show.

  Raises:
    DataError: if it is missing, unprepared or not of the expected form.
  """
  _check_settings(name, preset, classes, streamed=False)
  chosen = presets.find(preset, crop=crop, normalisation=normalisation)
  known = normalisations.find(chosen.normalisation)
  if image_files.is_named(name):
    found = image_files.load(
      name, size, chosen, data_dir=data_dir, classes=classes
    )
  elif name in embedded.SOURCES:
    found = embedded.SOURCES[name]()
  else:
    found = tfds_source.load_tfds(name, data_dir=data_dir)
  if known is None:
    return found
  return dataclasses.replace(
    found,
    train_images=known.turn(found.train_images),
    test_images=known.turn(found.test_images),
    moments=(known.mean, known.std),
  )


def stream(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  size: int = 224,
  crop: float = 1.0,
  normalisation: str = "",
  preset: str = "",
  classes: int = 0,
  workers: int = 0,
  bad_images: int = 0,
) -> dataset.Dataset:
  """Open a data set whose images are read and decoded when they are needed.

  Args:
    name: see `load`; not of those that come with the package.
    data_dir: see `load`.
    size: see `load`; TFDS's images are cropped and resized as well.
    crop: see `load`.
    normalisation: see `load`; it or a preset must be named.
    preset: see `load`.
    classes: see `load`.
    workers: see `streamed.Images`.
    bad_images: see `streamed.Images`.

  Raises:
    DataError: see `load`; damaged images are found when they are read.
  """
  _check_settings(name, preset, classes, streamed=True)
  chosen = presets.find(
    preset, crop=crop, normalisation=normalisation, streamed=True
  )
  known = normalisations.find(chosen.normalisation)
  assert known is not None
  reading: dict[str, Any] = {"workers": workers, "bad_images": bad_images}
  if image_files.is_named(name):
    reading["classes"] = classes
    found = image_files.stream(name, size, chosen, data_dir=data_dir, **reading)
  else:
    found = tfds_source.stream_tfds(
      name, size, chosen, data_dir=data_dir, **reading
    )
  return dataclasses.replace(found, moments=(known.mean, known.std))


def describe(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  size: int = 224,
  preset: str = "",
  classes: int = 0,
  streamed: bool = False,
) -> dataset.DatasetInfo:
  """Tell what can be known of a data set without reading its images.

  (Those that come with the package are read for it: they are small.)

  Args:
    name: see `load`.
    data_dir: see `load`.
    size: see `load`.
    preset: see `load`.
    classes: see `load`.
    streamed: whether it is opened by `stream`.

  Raises:
    DataError: see `load`; but images beyond the first are not looked at.
  """
  _check_settings(name, preset, classes, streamed)
  if name in embedded.SOURCES:
    return embedded.SOURCES[name]().info
  if image_files.is_named(name):
    return image_files.describe(name, size, data_dir=data_dir, classes=classes)
  if streamed:
    # Which reads none.
    any_preset = presets.Preset()
    return tfds_source.stream_tfds(
      name, size, any_preset, data_dir=data_dir
    ).info
  return tfds_source.describe_tfds(name, data_dir=data_dir)


def _check_settings(
  name: str, preset: str, classes: int, streamed: bool
) -> None:
  """Raise DataError for settings that a data set cannot have."""
  if streamed and name in embedded.SOURCES:
    raise DataError(
      f"the images of {name!r} come with the package, in memory; expected those"
      " of TFDS, two lists or two folders as a stream"
    )
  files = image_files.is_named(name)
  if preset and not (files or streamed):
    raise DataError(
      f"preset is {preset!r}, and the images of {name!r} are read as they are"
      " stored; expected '' and a normalisation, or image files"
    )
  if classes and not files:
    raise DataError(
      f"classes is {classes}, and {name!r} says which it has; expected 0"
    )
