"""Data sets of image files: two lists, or two folders with one a class."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asga_jax.data import csv_source, presets, streamed
from asga_jax.data import dataset as dataset_lib


class Listing(NamedTuple):
  """The images of one part of a data set, which are not opened."""

  root: pathlib.Path
  names: list[str]  # relative to it
  labels: np.ndarray  # shape=(N,), dtype=int32
  # Names of classes, of folders alone.
  classes: tuple[str, ...] | None


def is_named(name: str) -> bool:
  """Tell whether the name of a data set is that of lists or folders."""
  return csv_source.is_list(name) or "," in name


def load(
  name: str,
  size: int,
  preset: presets.Preset,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  classes: int = 0,
) -> dataset_lib.Dataset:
  """Read image files into memory.

  Args:
    name: 'TRAIN,TEST', of each the CSV file, see `csv_source.read_list`, or the
      folder, which has a folder with image files for each class.
    size: of the images, height and width.
    preset: how they are cropped and resized.
    data_dir: the folder that these are relative to; None for the current one.
    classes: how many there are; 0 for the folders of the training part, or for
      0 to the highest label of both lists.

  Raises:
    DataError: nothing of that kind there, a missing or damaged file, or a label
      of no class.
  """
  parts = _parts(name, data_dir, classes)

  def decoded(part: Listing) -> np.ndarray:
    paths = [part.root / file for file in part.names]
    return csv_source.decode_files(paths, size, preset)

  return _dataset(name, parts, [decoded(part) for part in parts], classes)


def stream(
  name: str,
  size: int,
  preset: presets.Preset,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  classes: int = 0,
  workers: int = 0,
  bad_images: int = 0,
) -> dataset_lib.Dataset:
  """Open image files as `load` does, without reading them.

  Args:
    name: see `load`.
    size: see `load`.
    preset: see `load`.
    data_dir: see `load`.
    classes: see `load`.
    workers: see `streamed.Images`.
    bad_images: see `streamed.Images`.

  Raises:
    DataError: see `load`; damaged files are found when they are read.
  """
  parts = _parts(name, data_dir, classes)
  images = [
    streamed.Images(
      streamed.Files(part.root, part.names, part.labels),
      size,
      preset,
      workers=workers,
      bad_images=bad_images,
    )
    for part in parts
  ]
  return _dataset(name, parts, images, classes)


def describe(
  name: str,
  size: int,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  classes: int = 0,
) -> dataset_lib.DatasetInfo:
  """Tell what the lists or folders say; see `load`."""
  parts = _parts(name, data_dir, classes)
  return dataset_lib.DatasetInfo(
    name=name,
    image_shape=(size, size, 3),
    class_names=_class_names(parts, classes),
    train_images=len(parts[0].names),
  )


def _dataset(
  name: str,
  parts: tuple[Listing, Listing],
  images: Sequence[dataset_lib.Images],
  classes: int,
) -> dataset_lib.Dataset:
  return dataset_lib.Dataset(
    name=name,
    train_images=images[0],
    train_labels=parts[0].labels,
    test_images=images[1],
    test_labels=parts[1].labels,
    class_names=_class_names(parts, classes),
  )


def _parts(
  name: str, data_dir: str | os.PathLike[str] | None, classes: int
) -> tuple[Listing, Listing]:
  given = [part.strip() for part in name.split(",")]
  if len(given) != 2 or not all(given):
    raise dataset_lib.DataError(
      f"data set {name!r}: expected the CSV files of two parts, such as "
      "'train.csv,test.csv', or two folders of class folders, 'train,val'"
    )
  folder = pathlib.Path(data_dir or ".").expanduser()
  of_folders = [(folder / part).is_dir() for part in given]
  if of_folders == [False, True]:
    raise dataset_lib.DataError(
      f"data set {name!r}: {given[0]} is a list, which does not name classes as"
      f" the folders of {given[1]} do; expected a list there too"
    )
  train = _listed(folder / given[0], classes, None)
  return train, _listed(folder / given[1], classes, train.classes)


def _listed(
  path: pathlib.Path, classes: int, known: tuple[str, ...] | None
) -> Listing:
  if path.is_dir():
    return _in_folders(path, classes, known)
  highest = len(known) if known else classes
  rows = list(csv_source.read_rows(path, classes=highest))
  if not rows:
    raise dataset_lib.DataError(f"{path} lists no images; expected one or more")
  labels = np.array([label for _, label in rows], np.int32)
  return Listing(path.parent, [file for file, _ in rows], labels, None)


def _in_folders(
  path: pathlib.Path, classes: int, known: tuple[str, ...] | None
) -> Listing:
  """List the files of class folders, in the order of their names."""
  with os.scandir(path) as entries:
    found = tuple(sorted(entry.name for entry in entries if entry.is_dir()))
  if not found:
    raise dataset_lib.DataError(
      f"{path} has no folders; expected one for each class, with its images"
    )
  known = known or found
  unknown = sorted({*found} - {*known})
  if unknown:
    raise dataset_lib.DataError(
      f"{path / unknown[0]} is of no class of the training part; expected one "
      f"of its {len(known)}, {known[0]!r} to {known[-1]!r}"
    )
  if classes and len(known) != classes:
    raise dataset_lib.DataError(
      f"{path} has the folders of {len(known)} classes, and classes is "
      f"{classes}; expected {len(known)}, or 0 for as many as there are"
    )
  names: list[str] = []
  labels: list[int] = []
  for name in found:
    with os.scandir(path / name) as entries:
      files = sorted(
        entry.name
        for entry in entries
        if pathlib.PurePath(entry.name).suffix.lower() in csv_source.SUFFIXES
      )
    if not files:
      raise dataset_lib.DataError(
        f"{path / name} has no images; expected files that end in "
        + ", ".join(csv_source.SUFFIXES)
      )
    names += [os.path.join(name, file) for file in files]
    labels += [known.index(name)] * len(files)
  return Listing(path, names, np.array(labels, np.int32), known)


def _class_names(
  parts: tuple[Listing, Listing], classes: int
) -> tuple[str, ...]:
  if parts[0].classes:
    return parts[0].classes
  highest = max(int(part.labels.max()) for part in parts)
  return tuple(str(label) for label in range(classes or highest + 1))
