"""Labelled images, one function per source, and their batches."""

import dataclasses
import os

from asga_jax.data import (
  csv_source,
  dataset,
  embedded,
  normalisations,
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
) -> dataset.Dataset:
  """Read a data set into memory.

  Args:
    name: one of `embedded.SOURCES`, what TFDS calls it, or two files of lists,
      'TRAIN.csv,TEST.csv', see `csv_source.read_list`.
    data_dir: the TFDS data directory, for others than the embedded; None takes
      it from the environment variable ASGA_DATA_DIR. Of lists their folder.
    size: of images of lists, height and width.
    crop: of images of lists, see `csv_source.decode`.
    normalisation: one of `normalisations.NORMALISATIONS`; '' for mean and
      deviation of the training images.

  Raises:
    DataError: if it is missing, unprepared or not of the expected form.
  """
  known = normalisations.find(normalisation)
  if name in embedded.SOURCES:
    found = embedded.SOURCES[name]()
  elif csv_source.is_list(name):
    found = csv_source.load_csv(name, data_dir=data_dir, size=size, crop=crop)
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


def describe(
  name: str,
  *,
  data_dir: str | os.PathLike | None = None,
  size: int = 224,
) -> dataset.DatasetInfo:
  """Tell what can be known of a data set without reading its images.

  (Those that come with the package are read for it: they are small.)

  Args:
    name: see `load`.
    data_dir: see `load`.
    size: see `load`.

  Raises:
    DataError: see `load`; but images beyond the first are not looked at.
  """
  if name in embedded.SOURCES:
    return embedded.SOURCES[name]().info
  if csv_source.is_list(name):
    return csv_source.describe_csv(name, data_dir=data_dir, size=size)
  return tfds_source.describe_tfds(name, data_dir=data_dir)
