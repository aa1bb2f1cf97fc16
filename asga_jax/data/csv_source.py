"""Image files that a CSV file lists with their labels, or a folder holds."""

import csv
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from asga_jax.data import dataset as dataset_lib
from asga_jax.data import decoding, presets

_COLUMNS = ("path", "label")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Row(NamedTuple):
  """An image file and its class."""

  path: pathlib.Path
  label: int


def read_list(path: str | os.PathLike[str], *, within: str = "") -> list[Row]:
  """Read a list of images, without opening these.

  Args:
    path: a CSV file with the columns `path`, relative to its folder, and
      `label`, an integer from 0; others are not read.
    within: a folder, relative to that of the CSV file; only images in it are
      listed.

  Returns:
    The rows in their order.

  Raises:
    DataError: the file cannot be read or has no such columns or images; or a
      row without an existing file and a label, with its line.
  """
  path = pathlib.Path(path)
  rows = [Row(path.parent / name, label) for name, label in read_rows(path)]
  folder = path.parent / within
  rows = [row for row in rows if folder in row.path.parents]
  if not rows:
    raise dataset_lib.DataError(
      f"{path} lists no images{f' in {folder}' if within else ''}; expected one"
      " or more"
    )
  return rows


def read_rows(
  path: pathlib.Path, *, classes: int = 0
) -> Iterator[tuple[str, int]]:
  """Yield the rows of a list as they are written, once they are checked.

  Args:
    path: see `read_list`.
    classes: how many there are; 0 for any number.

  Raises:
    DataError: see `read_list`, and a label of no class, with its line.
  """
  for where, name, label in _lines(path, _COLUMNS):
    _file(name, path, where)
    assert name
    yield name, _label(label, where, classes)


def find_files(path: str | os.PathLike[str]) -> list[pathlib.Path]:
  """Find images without labels, without opening these.

  Args:
    path: a folder, with image files in it or below it, or a CSV file with the
      column `path`, relative to its folder; others are not read.

  Returns:
    The files, of a folder in the order of their names.

  Raises:
    DataError: there are none, a list that cannot be read, or a row without an
      existing file, with its line.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    found = sorted(
      file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES
    )
    expected = f"image files in it or below it ({', '.join(SUFFIXES)})"
  else:
    found = [
      _file(name, path, where) for where, name, _ in _lines(path, _COLUMNS[:1])
    ]
    expected = "the paths of image files"
  if not found:
    raise dataset_lib.DataError(f"{path} has no images; expected {expected}")
  return found


def _lines(
  path: pathlib.Path, columns: Sequence[str]
) -> Iterator[tuple[str, str | None, str | None]]:
  """Yield where each row stands, its path and its label."""
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      lines = csv.DictReader(file, strict=True)
      missing = [c for c in columns if c not in (lines.fieldnames or ())]
      if missing:
        raise dataset_lib.DataError(
          f"{path} has the columns {lines.fieldnames or []}; expected "
          f"{' and '.join(columns)}"
        )
      for fields in lines:
        where = f"{path}, line {lines.line_num}"
        yield where, fields["path"], fields.get("label")
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    plural = "s" * (len(columns) > 1)
    raise dataset_lib.DataError(
      f"{path} cannot be read as a list of images: {error}; expected a CSV "
      f"file with the column{plural} {' and '.join(columns)}"
    ) from error


def _file(name: str | None, source: pathlib.Path, where: str) -> pathlib.Path:
  if not name:
    raise dataset_lib.DataError(f"{where}: path is empty; expected a file")
  found = source.parent / name
  if not found.is_file():
    raise dataset_lib.DataError(
      f"{where}: there is no file {found}; expected paths relative to "
      f"{source.parent}"
    )
  return found


def _label(label: str | None, where: str, classes: int) -> int:
  whole = label and label.isascii() and label.isdigit()
  if not whole or (classes and int(label or 0) >= classes):
    up_to = f" to {classes - 1}" if classes else ""
    raise dataset_lib.DataError(
      f"{where}: label is {label!r}; expected an integer from 0{up_to}"
    )
  return int(label or 0)


def decode(
  paths: Sequence[pathlib.Path],
  *,
  size: int = 224,
  crop: float = 1.0,
  resample: str = "bilinear",
) -> np.ndarray:
  """Decode image files, crop their centre and bring it to one size.

  Args:
    paths: of files that pillow reads; gray ones and others become colour.
    size: height and width wanted.
    crop: side of the central square that is kept, as a share in (0, 1] of the
      image's short side.
    resample: 'bilinear' or 'bicubic', of the resizing; both smooth what they
      make smaller.

  Returns:
    Shape [N, size, size, 3], dtype uint8.

  Raises:
    DataError: a file that is no image or ends early, or bad settings.
  """
  return decode_files(paths, size, presets.Preset("", crop, resample))


def decode_files(
  paths: Sequence[pathlib.Path], size: int, preset: presets.Preset
) -> np.ndarray:
  """Decode image files as evaluation sees them; see `decode`."""
  share = preset.share(size)
  if size < 1 or not 0 < share <= 1:
    raise dataset_lib.DataError(
      f"size is {size} and crop {share}; expected a number of pixels and a "
      "share above 0 and up to 1"
    )
  if preset.resample not in decoding.RESAMPLING:
    raise dataset_lib.DataError(
      f"resample is {preset.resample!r}; expected one of "
      f"{', '.join(decoding.RESAMPLING)}"
    )
  images = np.empty((len(paths), size, size, 3), np.uint8)
  for index, path in enumerate(paths):
    image = decoding.decode(path, str(path))
    images[index] = decoding.centre(image, size, preset)
  return images


def read_images(
  path: str | os.PathLike[str],
  *,
  size: int = 224,
  crop: float = 1.0,
  within: str = "",
) -> dataset_lib.Split:
  """Read listed images into memory; see `read_list` and `decode`."""
  rows = read_list(path, within=within)
  return dataset_lib.Split(
    decode([row.path for row in rows], size=size, crop=crop),
    np.array([row.label for row in rows], np.int32),
  )


def is_list(name: str) -> bool:
  """Tell whether the name of a data set is that of CSV files."""
  return ".csv" in name
