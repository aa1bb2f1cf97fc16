"""Class folders and lists with labels: what is found, and what is refused."""

import numpy as np
import pytest
from made_images import CLASSES, damage, leave_folders, numbers

from asga_jax import data


@pytest.fixture
def root(tmp_path):
  return leave_folders(tmp_path, counts=(3, 2))


def _open(root, name="train,val", **settings):
  return data.stream(
    name, data_dir=root, size=8, preset="torchvision", **settings
  )


def test_folders_are_classes_in_the_order_of_their_names(root):
  (root / "train" / "dog" / "notes.txt").write_text("no image")
  opened = _open(root)
  assert opened.class_names == CLASSES
  np.testing.assert_array_equal(opened.train_labels, np.repeat(range(3), 3))
  np.testing.assert_array_equal(numbers(opened.train_images[:]), range(9))
  told = data.describe("train,val", data_dir=root, size=8, streamed=True)
  assert told == opened.info
  # The same images in memory.
  held = data.load("train,val", data_dir=root, size=8, preset="torchvision")
  assert held.info == told
  assert held.mean == opened.mean == (0.485, 0.456, 0.406)
  for part in ("train", "test"):
    for what in ("images", "labels"):
      field = f"{part}_{what}"
      np.testing.assert_array_equal(
        getattr(held, field), getattr(opened, field)[:]
      )


def test_kernels_that_are_turned_see_turned_images(root):
  plain, turned = (
    data.stream("train,val", data_dir=root, size=8, preset=name)
    for name in ("tensorflow", "tensorflow_flipped")
  )
  np.testing.assert_array_equal(
    turned.test_images[:], plain.test_images[:][:, ::-1, ::-1]
  )
  assert turned.std == pytest.approx((0.5,) * 3)


def test_lists_say_how_many_classes_there_are(root):
  for name in ("train", "val"):
    (root / f"{name}.csv").write_text(
      f"label,path\n2,{name}/dog/1.jpg\n0,{name}/elk/0.jpg\n"
    )
  opened = _open(root, "train.csv,val.csv")
  assert opened.class_names == ("0", "1", "2")
  np.testing.assert_array_equal(opened.train_labels, [2, 0])
  np.testing.assert_array_equal(numbers(opened.train_images[:]), [4, 6])
  assert _open(root, "train.csv,val.csv", classes=1000).num_classes == 1000
  # A list and folders: these name the classes.
  assert _open(root, "train,val.csv").class_names == CLASSES


@pytest.mark.parametrize(
  ("text", "settings", "message"),
  [
    ("val/dog/9.jpg,1", {}, r"list\.csv, line 3: there is no file .*9\.jpg"),
    (
      "val/dog/0.jpg,3",
      {"classes": 3},
      "line 3: label is '3'; expected an integer from 0 to 2",
    ),
    ("val/dog/0.jpg,-1", {}, "line 3: label is '-1'; expected an integer"),
    # Three folders are three classes.
    ("val/dog/0.jpg,3", {"train": "train"}, "label is '3'; .* from 0 to 2"),
  ],
)
def test_a_bad_row_is_told_before_any_image_is_read(
  root, text, settings, message
):
  (root / "list.csv").write_text(f"path,label\nval/cat/0.jpg,0\n{text}\n")
  for image in root.rglob("*.jpg"):
    damage(image)
  settings = dict(settings)
  train = settings.pop("train", "list.csv")
  with pytest.raises(data.DataError, match=message):
    _open(root, f"{train},list.csv", **settings)


def test_bad_folders_are_told(root):
  with pytest.raises(data.DataError, match="of 3 classes, and classes is 5"):
    _open(root, classes=5)
  with pytest.raises(data.DataError, match="cat has no folders; expected one"):
    _open(root, "train/cat,val")
  with pytest.raises(data.DataError, match="nowhere cannot be read as a list"):
    _open(root, "train,nowhere")
  (root / "train.csv").write_text("path,label\ntrain/dog/1.jpg,1\n")
  with pytest.raises(data.DataError, match=r"train\.csv is a list, which does"):
    _open(root, "train.csv,val")
  (root / "val" / "fox").mkdir()
  with pytest.raises(
    data.DataError, match=r"val/fox is of no class .* 'cat' to 'elk'"
  ):
    _open(root)
  (root / "train" / "fox").mkdir()
  with pytest.raises(data.DataError, match="train/fox has no images; expected"):
    _open(root)


def test_what_comes_in_memory_is_no_stream():
  with pytest.raises(data.DataError, match="'digits' come with the package"):
    data.stream("digits", preset="torchvision")
