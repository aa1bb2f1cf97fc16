"""Image files that a CSV file lists with their labels, or a folder holds."""

import csv
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from asga_jax.data import dataset as dataset_lib

_COLUMNS = ("path", "label")
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_RESAMPLING = {
  "bilinear": PIL.Image.Resampling.BILINEAR,
  "bicubic": PIL.Image.Resampling.BICUBIC,
}


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
  rows = [
    Row(_file(name, path, where), _label(label, where))
    for where, name, label in _lines(path, _COLUMNS)
  ]
  folder = path.parent / within
  rows = [row for row in rows if folder in row.path.parents]
  if not rows:
    raise dataset_lib.DataError(
      f"{path} lists no images{f' in {folder}' if within else ''}; expected one"
      " or more"
    )
  return rows


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
      file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES
    )
    expected = f"image files in it or below it ({', '.join(_SUFFIXES)})"
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


def _label(label: str | None, where: str) -> int:
  if not (label and label.isascii() and label.isdigit()):
    raise dataset_lib.DataError(
      f"{where}: label is {label!r}; expected an integer from 0"
    )
  return int(label)


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
  if size < 1 or not 0 < crop <= 1:
    raise dataset_lib.DataError(
      f"size is {size} and crop {crop}; expected a number of pixels and a "
      "share above 0 and up to 1"
    )
  if resample not in _RESAMPLING:
    raise dataset_lib.DataError(
      f"resample is {resample!r}; expected one of {', '.join(_RESAMPLING)}"
    )
  images = np.empty((len(paths), size, size, 3), np.uint8)
  for index, path in enumerate(paths):
    images[index] = _decode_one(path, size, crop, resample)
  return images


def _decode_one(
  path: pathlib.Path, size: int, crop: float, resample: str
) -> np.ndarray:
  # Pillow raises errors of many kinds on damaged files.
  try:
    with PIL.Image.open(path) as opened:
      image = opened.convert("RGB")
  except Exception as error:
    raise dataset_lib.DataError(
      f"{path} cannot be decoded: {error}; expected a whole image file"
    ) from error
  side = max(1, round(min(image.size) * crop))
  left, top = ((extent - side) // 2 for extent in image.size)
  box = (left, top, left + side, top + side)
  if side != size:
    image = image.resize((size, size), _RESAMPLING[resample], box=box)
  else:
    image = image.crop(box)
  return np.asarray(image)


def read_images(
  path: str | os.PathLike[str],
  *,
  size: int = 224,
  crop: float = 1.0,
  within: str = "",
) -> dataset_lib.Split:
  """Read listed images into memory; see `read_list` and `decode`."""
  return _split(read_list(path, within=within), size, crop)


def _split(rows: Sequence[Row], size: int, crop: float) -> dataset_lib.Split:
  return dataset_lib.Split(
    decode([row.path for row in rows], size=size, crop=crop),
    np.array([row.label for row in rows], np.int32),
  )


def is_list(name: str) -> bool:
  """Tell whether the name of a data set is that of CSV files."""
  return ".csv" in name


def load_csv(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  size: int = 224,
  crop: float = 1.0,
) -> dataset_lib.Dataset:
  """Read a data set that two CSV files list.

  Classes are 0 to the highest label of both.

  Args:
    name: 'TRAIN.csv,TEST.csv'.
    data_dir: the folder that these are relative to; None for the current one.
    size: see `decode`.
    crop: see `decode`.

  Raises:
    DataError: see `read_list` and `decode`.
  """
  parts = _parts(name, data_dir)
  train, test = (_split(rows, size, crop) for rows in parts)
  return dataset_lib.Dataset(
    name=name,
    train_images=train.images,
    train_labels=train.labels,
    test_images=test.images,
    test_labels=test.labels,
    class_names=_classes(parts),
  )


def describe_csv(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  size: int = 224,
) -> dataset_lib.DatasetInfo:
  """Tell what the CSV files say; see `load_csv`."""
  parts = _parts(name, data_dir)
  return dataset_lib.DatasetInfo(
    name=name,
    image_shape=(size, size, 3),
    class_names=_classes(parts),
    train_images=len(parts[0]),
  )


def _parts(
  name: str, data_dir: str | os.PathLike[str] | None
) -> tuple[list[Row], list[Row]]:
  files = name.split(",")
  if len(files) != 2 or not all(files):
    raise dataset_lib.DataError(
      f"data set {name!r}: expected the CSV files of two parts, such as "
      "'train.csv,test.csv'"
    )
  folder = pathlib.Path(data_dir or ".").expanduser()
  train, test = (read_list(folder / file.strip()) for file in files)
  return train, test


def _classes(parts: Sequence[Sequence[Row]]) -> tuple[str, ...]:
  highest = max(row.label for rows in parts for row in rows)
  return tuple(str(label) for label in range(highest + 1))
