"""The images of a quantization without training: to learn from, to report."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np

from asga_jax import data as data_lib
from asga_jax.data import augmentation, csv_source, normalisations, presets
from asga_jax.runs import build
from asga_jax.runs import data as run_data

# Of images without labels: which share is left for the report at least, and
# how many are taken of many.
_HELD_OUT, _MOST_HELD_OUT = 0.2, 2000


class Part(NamedTuple):
  """Images that a network is measured on."""

  name: str
  # Float32 batches, as the network takes them.
  inputs: list[np.ndarray]
  labels: np.ndarray | None  # of all batches, int32

  def __len__(self) -> int:
    return sum(map(len, self.inputs))


class Images(NamedTuple):
  """All that a quantization sees."""

  # What ranges, scores and corrections come from, without labels.
  batches: list[np.ndarray]
  # What the report is on.
  tested: Part
  # What a budget by accuracy is measured on.
  bounded: Part


def read(config: ml_collections.ConfigDict) -> Images:
  """Read and prepare the images that a configuration names.

  Args:
    config: see `quantize_config.check`.

  Raises:
    ValueError: no such images, or too few.
  """
  given = config.post_training
  preset = _preset(config)
  known = normalisations.find(preset.normalisation)
  dataset = None
  if config.data.name:
    dataset = run_data.with_classes(
      build.load_data(config), config.deployed.num_classes
    )
    if dataset.num_classes > config.deployed.num_classes:
      raise data_lib.DataError(
        f"{config.data.name} has {dataset.num_classes} classes and"
        f" config.deployed.num_classes is {config.deployed.num_classes};"
        " expected that of the weights, and labels within it"
      )
  mean, std = (
    (dataset.mean, dataset.std)
    if dataset is not None
    else (known.mean, known.std)  # type: ignore[union-attr]
  )

  def prepared(images: np.ndarray, size: int) -> list[np.ndarray]:
    return [
      np.asarray(
        augmentation.preprocess(
          jnp.asarray(images[start : start + size]),
          mean=mean,
          std=std,
          size=config.data.image_size,
        )
      )
      for start in range(0, len(images), size)
    ]

  def part(name: str, images: np.ndarray, labels: np.ndarray | None) -> Part:
    most = config.report_batches * config.eval_batch_size or len(images)
    inputs = prepared(images[:most], config.eval_batch_size)
    return Part(name, inputs, None if labels is None else labels[:most])

  held = others = None
  if given.source:
    files = csv_source.find_files(given.source)
    chosen = _choose(config, len(files), hold_out=dataset is None)
    used = _decode(config, [files[index] for index in chosen])
    if dataset is None:
      rest = np.setdiff1d(np.arange(len(files)), chosen)
      rest = rest[_evenly(len(rest), min(len(rest), _MOST_HELD_OUT))]
      images = _decode(config, [files[index] for index in rest])
      held = part("held-out images", images, None)
  else:
    assert dataset is not None
    chosen = _choose(config, len(dataset.train_images), hold_out=False)
    used = dataset.train_images[chosen]
    others = np.setdiff1d(np.arange(len(dataset.train_images)), chosen)
  batches = prepared(used, given.batch_size)
  if dataset is None:
    assert held is not None
    return Images(batches, held, held)
  tested = part("test", dataset.test_images, dataset.test_labels)
  if given.split == "test":
    return Images(batches, tested, tested)
  if others is None:
    others = np.arange(len(dataset.train_images))
  if not len(others):
    raise data_lib.DataError(
      f"config.post_training.images is {given.images}, which are all training"
      f" images of {dataset.name}; expected fewer where"
      " config.post_training.split is 'train'"
    )
  train = part(
    "train", dataset.train_images[others], dataset.train_labels[others]
  )
  return Images(batches, tested, train)


def _choose(
  config: ml_collections.ConfigDict, count: int, *, hold_out: bool
) -> np.ndarray:
  """Choose images evenly over their order, in whole batches where it can be."""
  given = config.post_training
  most = count
  if hold_out:
    most = count - max(1, round(_HELD_OUT * count))
  if most < 1:
    raise data_lib.DataError(
      f"{given.source} has {count} image; expected two or more, since some are"
      " held out for the report where there are no labels"
    )
  used = min(given.images, most)
  if used > given.batch_size:
    used -= used % given.batch_size
  chosen = _evenly(count, used)
  if used % given.batch_size:
    return chosen
  # Each batch goes over the whole order, which may be by class.
  return chosen.reshape(given.batch_size, -1).T.reshape(-1)


def _evenly(count: int, wanted: int) -> np.ndarray:
  return np.linspace(0, count - 1, wanted).round().astype(int)


def _preset(config: ml_collections.ConfigDict) -> presets.Preset:
  given = config.data
  return presets.find(
    given.preset, crop=given.crop, normalisation=given.normalisation
  )


def _decode(config: ml_collections.ConfigDict, files: Sequence) -> np.ndarray:
  preset = _preset(config)
  if config.post_training.crop:
    crop = config.post_training.crop
    preset = preset._replace(crop=crop, resize_first=False)
  images = csv_source.decode_files(files, config.data.image_size, preset)
  known = normalisations.find(preset.normalisation)
  return images if known is None else known.turn(images)
