"""Images of a grid: proxies without labels, and labelled targets."""

import csv
import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from asga_jax import data as data_lib
from asga_jax.data import csv_source
from asga_jax.evidence import networks as networks_lib

_IMAGENET = 1000  # classes
_WORDNET = re.compile(r"n\d{8}")


class Folder(NamedTuple):
  """Images that are prepared alike."""

  name: str
  crop: float = 1.0
  resample: str = "bicubic"
  # Whether only images of the classes of the folder before it are taken.
  alike: bool = False


# Of ImageNet's validation images. The 500 of ten classes of dogs are 488 of 320
# pixels, and 12 that are there in one size with images of other classes.
PARTS: Mapping[str, Sequence[Folder]] = {
  "woof320": [Folder("woof320", 0.875, "bilinear")],
  "woof500": [
    Folder("woof320", 0.875, "bilinear"),
    Folder("mixed227", alike=True),
  ],
  "mixed227": [Folder("mixed227")],
  "nette224": [Folder("nette224")],
}


def read_target(
  name: str, network: networks_lib.Network, root: pathlib.Path
) -> data_lib.Split:
  """Read labelled images that a network is evaluated on.

  Args:
    name: of `PARTS`, or a data set, of which the test images are taken: of
      one whose classes are WordNet ids those whose place among ImageNet's 1000
      the lists of images know, for a network of these.
    network: its size and crop are those of the images.
    root: of the data.

  Returns:
    Stored images, uint8, at the network's size.

  Raises:
    ValueError: there are none, or labels of other classes.
  """
  if name in PARTS:
    return _read_part(root, PARTS[name], network)
  found = data_lib.load(name, data_dir=_tfds(root))
  images, labels = found.test_images, found.test_labels
  if _are_of_imagenet(found.class_names, network):
    known = _labels_of_ids(root)
    places = np.array([known.get(x, -1) for x in found.class_names], np.int32)
    labels = places[labels]
    images, labels = images[labels >= 0], labels[labels >= 0]
  else:
    _check_classes(name, found.num_classes, network)
  return data_lib.Split(enlarged(images, network.size), labels)


def _are_of_imagenet(
  names: Sequence[str], network: networks_lib.Network
) -> bool:
  """Tell whether classes are WordNet ids, for a network of ImageNet's."""
  return network.classes == _IMAGENET and all(map(_WORDNET.fullmatch, names))


def _labels_of_ids(root: pathlib.Path) -> dict[str, int]:
  """Read which WordNet id has which label, from the lists of images."""
  found = {}
  for name in ("val.csv", "calibration.csv"):
    with (root / "imagenet" / name).open(newline="") as file:
      for row in csv.DictReader(file):
        found[row["synset"]] = int(row["label"])
  return found


def read_training(
  name: str, network: networks_lib.Network, root: pathlib.Path
) -> data_lib.Dataset:
  """Read a data set of a network's classes; ValueError if there is none."""
  found = data_lib.load(name, data_dir=_tfds(root))
  _check_classes(name, found.num_classes, network)
  return found


def read_proxy(
  source: str, count: int, network: networks_lib.Network, root: pathlib.Path
) -> np.ndarray:
  """Read images without labels, evenly over the whole of a source.

  Args:
    source: a CSV file with the column `path`, relative to the data, or a data
      set, of which training images are taken.
    count: how many.
    network: its size is that of the images.
    root: of the data.

  Returns:
    Stored images, uint8, shape (count, size, size, 3).

  Raises:
    ValueError: no such source, or too few images.
  """
  listed: Sequence[pathlib.Path] | None = None
  if csv_source.is_list(source):
    listed = csv_source.find_files(root / source)
    there = len(listed)
  else:
    found = data_lib.load(source, data_dir=_tfds(root))
    there = len(found.train_images)
  _check_count(source, there, count)
  chosen = np.linspace(0, there - 1, count).round().astype(int)
  if listed is not None:
    return csv_source.decode([listed[i] for i in chosen], size=network.size)
  return enlarged(found.train_images[chosen], network.size)


def check_target(
  name: str, network: networks_lib.Network, root: pathlib.Path
) -> None:
  """Raise ValueError unless a target is there, without reading its images."""
  if name in PARTS:
    if network.classes != _IMAGENET:
      raise data_lib.DataError(
        f"target {name!r} has {_IMAGENET} classes and {network.model}"
        f" {network.classes}; expected a target of as many"
      )
    for folder in PARTS[name]:
      _listed(folder, root)
    return
  known = ", ".join(PARTS)
  try:
    found = data_lib.describe(name, data_dir=_tfds(root))
  except ValueError as error:
    raise data_lib.DataError(
      f"target {name!r} is neither one of {known} nor a data set: {error}"
    ) from error
  if not _are_of_imagenet(found.class_names, network):
    _check_classes(name, found.num_classes, network)


def check_proxy(source: str, count: int, root: pathlib.Path) -> None:
  """Raise ValueError unless a proxy has so many images; none are read."""
  if csv_source.is_list(source):
    there = len(csv_source.find_files(root / source))
  else:
    there = data_lib.describe(source, data_dir=_tfds(root)).train_images
  _check_count(source, there, count)


def fingerprint(source: str, root: pathlib.Path) -> str:
  """Hash what decides the images of a proxy or a target: files and how.

  Of a list its text and the sizes of its files, of a data set of TFDS what it
  says of itself; those that come along are known by their names.
  """
  said: list[Any] = [source]
  if source in PARTS:
    said.append(PARTS[source])
    rows = [row for folder in PARTS[source] for row in _listed(folder, root)]
    said += [(row.path.name, row.label) for row in rows]
    said += [row.path.stat().st_size for row in rows]
  elif csv_source.is_list(source):
    said.append((root / source).read_text())
    paths = csv_source.find_files(root / source)
    said += [path.stat().st_size for path in paths]
  elif (folder := root / "tfds" / source).is_dir():
    said += [path.read_text() for path in folder.glob("*/dataset_info.json")]
  return hashlib.sha256(repr(said).encode()).hexdigest()


def _check_classes(
  name: str, classes: int, network: networks_lib.Network
) -> None:
  if classes != network.classes:
    raise data_lib.DataError(
      f"data set {name!r} has {classes} classes and {network.model}"
      f" {network.classes}; expected one of as many"
    )


def _check_count(source: str, there: int, count: int) -> None:
  if there < count:
    raise data_lib.DataError(
      f"proxy {source!r} has {there} images; expected {count} or more"
    )


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
  """Bring stored images to one size, in colour, by bicubic interpolation."""
  if images.shape[-1] == 1:
    images = images.repeat(3, axis=-1)
  if images.shape[1:3] == (size, size):
    return images
  sampling = PIL.Image.Resampling.BICUBIC
  return np.stack(
    [
      np.asarray(PIL.Image.fromarray(image).resize((size, size), sampling))
      for image in images
    ]
  )


def _tfds(root: pathlib.Path) -> pathlib.Path | None:
  return root / "tfds" if (root / "tfds").is_dir() else None


def _listed(folder: Folder, root: pathlib.Path) -> list[csv_source.Row]:
  return csv_source.read_list(
    root / "imagenet" / "val.csv", within=f"val/{folder.name}"
  )


def _read_part(
  root: pathlib.Path, folders: Sequence[Folder], network: networks_lib.Network
) -> data_lib.Split:
  images: list[np.ndarray] = []
  labels: list[int] = []
  for folder in folders:
    rows = _listed(folder, root)
    if folder.alike:
      rows = [row for row in rows if row.label in set(labels)]
    images.append(
      csv_source.decode(
        [row.path for row in rows],
        size=network.size,
        crop=folder.crop if folder.alike else min(folder.crop, network.crop),
        resample=folder.resample,
      )
    )
    labels += [row.label for row in rows]
  return data_lib.Split(np.concatenate(images), np.array(labels, np.int32))
