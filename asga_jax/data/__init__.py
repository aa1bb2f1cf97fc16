"""Labelled images, one function per source, and their batches."""

import os

from asga_jax.data import dataset, embedded, tfds_source

DataError = dataset.DataError
Dataset = dataset.Dataset
DatasetInfo = dataset.DatasetInfo
Split = dataset.Split
Splits = dataset.Splits
split_proxy = dataset.split_proxy


def load(
  name: str, *, data_dir: str | os.PathLike | None = None
) -> dataset.Dataset:
  """Read a data set into memory.

  Args:
    name: one of `embedded.SOURCES`, or what TFDS calls it.
    data_dir: the TFDS data directory, for others than the embedded; None takes
      it from the environment variable ASGA_DATA_DIR.

  Raises:
    DataError: if it is missing, unprepared or not of the expected form.
  """
  if name in embedded.SOURCES:
    return embedded.SOURCES[name]()
  return tfds_source.load_tfds(name, data_dir=data_dir)


def describe(
  name: str, *, data_dir: str | os.PathLike | None = None
) -> dataset.DatasetInfo:
  """Tell what can be known of a data set without reading its images.

  (Those that come with the package are read for it: they are small.)

  Args:
    name: see `load`.
    data_dir: see `load`.

  Raises:
    DataError: see `load`; but images beyond the first are not looked at.
  """
  if name in embedded.SOURCES:
    return embedded.SOURCES[name]().info
  return tfds_source.describe_tfds(name, data_dir=data_dir)
