"""Prepared TFDS data sets: real ones where present, and some made here."""

import io
import os
import pathlib
import pickle
import shutil

import numpy as np
import PIL.Image
import pytest

from asga_jax import data
from asga_jax.data import batches

_DATA_DIR = os.environ.get("ASGA_DATA_DIR", "")


def _needs(name):
  return pytest.mark.skipif(
    not (_DATA_DIR and pathlib.Path(_DATA_DIR, name).is_dir()),
    reason=f"no {name} under ASGA_DATA_DIR ({_DATA_DIR or 'not set'})",
  )


def _picture(value, height=4, width=6):
  """A PNG file of one colour."""
  file = io.BytesIO()
  pixels = np.full((height, width, 3), value, np.uint8)
  PIL.Image.fromarray(pixels).save(file, "png")
  file.seek(0)
  return file


def _prepare(root, parts, *, features=None, version="1.0.0"):
  """Prepares a data set `tiny_made` as TFDS does, without TensorFlow."""
  import tensorflow_datasets as tfds

  features = features or {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.ClassLabel(names=["dark", "light"]),
  }

  class TinyMade(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      return {part: enumerate(rows) for part, rows in parts.items()}

    def _generate_examples(self):
      raise NotImplementedError

  builder = TinyMade(data_dir=root, file_format="array_record")
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)


def test_what_a_wrong_first_image_has_is_told_without_the_others(tmp_path):
  import tensorflow_datasets as tfds

  features = {
    "image": tfds.features.Image(shape=(None, None, 4)),
    "label": tfds.features.ClassLabel(names=["dark", "light"]),
  }
  file = io.BytesIO()
  PIL.Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(file, "png")
  train, test = (
    [{"image": io.BytesIO(file.getvalue()), "label": 0}] for _ in range(2)
  )
  _prepare(tmp_path, {"train": train, "test": test}, features=features)
  for read in (data.describe, data.load):
    with pytest.raises(data.DataError, match="1 or 3 channels"):
      read("tiny_made", data_dir=tmp_path)


def _rows(values):
  return [{"image": _picture(v), "label": int(v > 127)} for v in values]


def test_a_prepared_set_is_read_as_it_was_written(tmp_path, monkeypatch):
  _prepare(
    tmp_path, {"train": _rows([0, 200, 10, 255]), "test": _rows([30, 220])}
  )
  dataset = data.load("tiny_made", data_dir=tmp_path)
  assert dataset.train_images.shape == (4, 4, 6, 3)
  assert dataset.class_names == ("dark", "light")
  assert dataset.test_split == "test"
  # TFDS shuffles what it writes.
  assert sorted(dataset.train_images[:, 0, 0, 0]) == [0, 10, 200, 255]
  assert sorted(dataset.test_images[:, 3, 5, 2]) == [30, 220]
  np.testing.assert_array_equal(
    dataset.train_labels, dataset.train_images[:, 0, 0, 0] > 127
  )
  info = data.describe("tiny_made", data_dir=tmp_path)
  assert info == dataset.info
  assert (info.train_images, info.image_shape) == (4, (4, 6, 3))
  monkeypatch.setenv("ASGA_DATA_DIR", str(tmp_path))
  again = data.load("tiny_made/1.0.0")
  np.testing.assert_array_equal(again.train_images, dataset.train_images)


def test_a_prepared_set_is_streamed_whatever_shape_its_images_have(tmp_path):
  rows = _rows([0, 200, 10, 255])
  rows[2]["image"] = _picture(10, height=9, width=5)
  _prepare(tmp_path, {"train": rows, "test": _rows([30, 220])})
  dataset = data.stream(
    "tiny_made", data_dir=tmp_path, size=4, preset="tensorflow"
  )
  told = data.describe("tiny_made", data_dir=tmp_path, size=4, streamed=True)
  assert told == dataset.info
  assert (told.train_images, told.image_shape) == (4, (4, 4, 3))
  seen = list(batches.eval_batches(_train(dataset), 3))
  values = np.concatenate([batch["image"][:, 1, 1, 0] for batch in seen])
  labels = np.concatenate([batch["label"] for batch in seen])
  assert sorted(values[:4]) == [0, 10, 200, 255]
  np.testing.assert_array_equal(labels[:4], values[:4] > 127)
  # Only who asks for labels alone reads all of them.
  assert "_read" not in vars(dataset.train_labels)
  splits = data.split_proxy(dataset, heldout_fraction=0.5, seed=0)
  for part in (splits.train, splits.heldout):
    taken = part.take(np.arange(2))
    np.testing.assert_array_equal(taken["label"], part.labels)
    np.testing.assert_array_equal(taken["image"][:, 0, 0, 0] > 127, part.labels)
  # Records travel to other processes.
  again = pickle.loads(pickle.dumps(dataset.test_images))
  np.testing.assert_array_equal(again[:], dataset.test_images[:])
  with pytest.raises(data.DataError, match="classes is 3, and 'tiny_made'"):
    data.stream("tiny_made", data_dir=tmp_path, preset="tensorflow", classes=3)
  with pytest.raises(data.DataError, match="preset is 'tensorflow', and the"):
    data.load("tiny_made", data_dir=tmp_path, preset="tensorflow")


def _train(dataset):
  return data.Split(dataset.train_images, dataset.train_labels)


def test_the_newest_version_is_read_and_validation_reports(tmp_path):
  for version, value in (("1.10.0", 9), ("1.9.0", 8)):
    folder = _prepare(
      tmp_path / version,
      {"train": _rows([value]), "validation": _rows([value])},
      version=version,
    )
    shutil.copytree(folder, tmp_path / "both" / "tiny_made" / version)
  dataset = data.load("tiny_made", data_dir=tmp_path / "both")
  assert dataset.train_images.max() == 9
  assert dataset.test_split == "validation"


def test_images_of_several_shapes_are_refused(tmp_path):
  row = {"image": _picture(1, height=5), "label": 0}
  _prepare(tmp_path, {"train": [*_rows([0]), row], "test": _rows([0])})
  with pytest.raises(
    data.DataError,
    match=r"'tiny_made', split 'train': .*shape \[., 6, 3\].*\[., 6, 3\] at 1",
  ):
    data.load("tiny_made", data_dir=tmp_path)


def test_a_set_without_a_part_to_report_is_refused(tmp_path):
  _prepare(tmp_path, {"train": _rows([0, 1])})
  with pytest.raises(
    data.DataError, match="'test' or 'validation'; found train"
  ):
    data.load("tiny_made", data_dir=tmp_path)


def test_a_set_without_labels_is_refused(tmp_path):
  import tensorflow_datasets as tfds

  rows = [{"text": "no image"}]
  _prepare(
    tmp_path,
    {"train": rows, "test": rows},
    features={"text": tfds.features.Text()},
  )
  with pytest.raises(data.DataError, match=r"features 'image' .*found .*text"):
    data.load("tiny_made", data_dir=tmp_path)


def test_a_damaged_description_is_refused(tmp_path):
  folder = _prepare(tmp_path, {"train": _rows([0]), "test": _rows([0])})
  (folder / "features.json").write_text("{")
  with pytest.raises(data.DataError, match=r"'tiny_made'.*1\.0\.0 is not read"):
    data.load("tiny_made", data_dir=tmp_path)


def test_another_file_format_is_refused(tmp_path):
  folder = _prepare(tmp_path, {"train": _rows([0]), "test": _rows([0])})
  info = folder / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(
    data.DataError, match="expected the file format array_record; found tfrec"
  ):
    data.load("tiny_made", data_dir=tmp_path)


def test_a_missing_set_says_where_it_was_and_how_to_prepare_it(tmp_path):
  with pytest.raises(data.DataError) as failure:
    data.load("cifar11", data_dir=tmp_path)
  message = str(failure.value)
  assert "'cifar11'" in message
  assert f"{tmp_path}/cifar11/dataset_info.json" in message
  assert "tfds.load('cifar11'" in message
  assert "fashion_mnist_8k" in message


def test_no_data_directory_is_said(monkeypatch):
  monkeypatch.delenv("ASGA_DATA_DIR", raising=False)
  with pytest.raises(data.DataError, match="data_dir or set ASGA_DATA_DIR"):
    data.load("cifar10")


@_needs("cifar10")
def test_cifar10():
  dataset = data.load("cifar10")
  assert dataset.train_images.shape == (50000, 32, 32, 3)
  np.testing.assert_array_equal(np.bincount(dataset.train_labels), [5000] * 10)
  np.testing.assert_array_equal(np.bincount(dataset.test_labels), [1000] * 10)
  assert dataset.class_names[:2] == ("airplane", "automobile")
  # The means that everyone prints; recompression moves them little.
  np.testing.assert_allclose(dataset.mean, (0.4914, 0.4822, 0.4465), atol=0.001)


@pytest.mark.slow
@_needs("tiny_imagenet100")
def test_tiny_imagenet100_reports_on_its_validation_split():
  dataset = data.load("tiny_imagenet100")
  assert dataset.train_images.shape == (30000, 64, 64, 3)
  assert dataset.test_images.shape == (5000, 64, 64, 3)
  assert dataset.test_split == "validation"
  assert dataset.num_classes == 100
  assert dataset.class_names[0] == "n01443537"
