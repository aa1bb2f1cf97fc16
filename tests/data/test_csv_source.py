"""Image files in lists: what is decoded, and every way it can go wrong."""

import jax
import numpy as np
import PIL.Image
import pytest

from asga_jax import data
from asga_jax.data import batches, csv_source
from asga_jax.runs import build
from asga_jax.runs import config as config_lib


def _write(folder, name, pixels):
  (folder / name).parent.mkdir(exist_ok=True)
  PIL.Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def folder(tmp_path):
  """Four images of 6x4, 4x4 and 8x8 pixels in two lists."""
  rng = np.random.default_rng(0)
  shapes = [(4, 6, 3), (6, 4, 3), (4, 4), (8, 8, 3)]
  for index, shape in enumerate(shapes):
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    _write(tmp_path, f"{'ab'[index // 2]}/{index}.png", pixels)
  (tmp_path / "train.csv").write_text(
    "path,label,synset\na/0.png,0,x\na/1.png,2,y\nb/2.png,1,z\n"
  )
  (tmp_path / "test.csv").write_text("label,path\n2,b/3.png\n1,a/1.png\n")
  return tmp_path


def _pixels(path):
  return np.asarray(PIL.Image.open(path))


def test_the_centre_is_cropped_and_gray_becomes_colour(folder):
  split = csv_source.read_images(folder / "train.csv", size=4)
  assert split.images.dtype == np.uint8
  np.testing.assert_array_equal(split.labels, [0, 2, 1])
  wide, high, gray = (
    _pixels(folder / name) for name in ("a/0.png", "a/1.png", "b/2.png")
  )
  np.testing.assert_array_equal(split.images[0], wide[:, 1:5])
  np.testing.assert_array_equal(split.images[1], high[1:5])
  np.testing.assert_array_equal(split.images[2], gray[..., None].repeat(3, -1))
  within = csv_source.read_images(folder / "train.csv", size=4, within="b")
  np.testing.assert_array_equal(within.images, split.images[2:])


def test_a_share_of_the_short_side_is_kept_and_resized(folder):
  half = csv_source.read_images(folder / "test.csv", size=4, crop=0.5)
  whole = _pixels(folder / "b/3.png")
  np.testing.assert_array_equal(half.images[0], whole[2:6, 2:6])
  # Halved by a triangle over four pixels, of weights 1, 3, 3 and 1.
  resized = csv_source.read_images(folder / "test.csv", size=4).images[0]
  weights = np.zeros((4, 8))
  for row in range(4):
    for offset, weight in zip(range(-1, 3), (1, 3, 3, 1), strict=True):
      if 0 <= 2 * row + offset < 8:
        weights[row, 2 * row + offset] = weight
  weights /= weights.sum(1, keepdims=True)
  want = np.einsum("hr,wc,rck->hwk", weights, weights, whole)
  np.testing.assert_allclose(resized, want, atol=1.01)


def test_a_configuration_names_lists_and_a_normalisation(folder):
  config = config_lib.default_config()
  config.data.name = "train.csv,test.csv"
  config.data.dir = str(folder)
  config.data.image_size = 4
  config.data.normalisation = "tensorflow_flipped"
  config_lib.check_search_config(config)
  info, dataset = build.describe_data(config), build.load_data(config)
  assert info == dataset.info
  assert info.num_classes == 3
  assert info.train_images == 3
  prepare = build.make_prepare(config, info, train=False)
  batch = {"image": dataset.test_images[1:]}
  batch |= batches.statistics(dataset, 1)
  given = prepare(jax.random.key(0), batch)["image"][0]
  turned = _pixels(folder / "a/1.png")[1:5][::-1, ::-1]
  np.testing.assert_allclose(given, (turned - 127.5) / 127.5, atol=1e-5)
  config.data.normalisation = ""
  plain = build.load_data(config)
  np.testing.assert_allclose(
    plain.mean, plain.train_images.mean((0, 1, 2)) / 255, rtol=1e-6
  )
  for key, value in {"normalisation": "imagenet", "crop": 0.0}.items():
    wrong = config.copy_and_resolve_references()
    wrong.data[key] = value
    with pytest.raises(ValueError, match=rf"{key} is {value!r}"):
      config_lib.check_search_config(wrong)


def test_published_normalisations():
  pixels = np.array([0, 127, 255], np.float64)[:, None]
  for name, (first, last) in {
    "efficientnet_lite": (-127 / 128, 1.0),
    "tensorflow": (-1.0, 1.0),
    "torchvision": (-0.485 / 0.229, (1 - 0.406) / 0.225),
  }.items():
    found = data.normalisations.find(name)
    scaled = (pixels / 255 - found.mean) / found.std
    assert scaled[0, 0] == pytest.approx(first)
    assert scaled[2, 2] == pytest.approx(last)


def test_gray_data_take_no_normalisation_of_colours():
  with pytest.raises(data.DataError, match=r"'digits'.* 3 channels; .* of 1"):
    data.load("digits", normalisation="torchvision")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, r"list\.csv cannot be read as a list .*No such file"),
    (b"\xff\xfe\x00", "cannot be read as a list of images: .*decode"),
    ("", r"has the columns \[\]; expected path and label"),
    ("file,label\na/0.png,1\n", r"has the columns \['file', 'label'\]"),
    ("path,label\n", "lists no images; expected one or more"),
    ("path,label\na/0.png\n", "line 2: label is None; expected an integer"),
    ("path,label\na/0.png,1\n,1\n", "line 3: path is empty"),
    ("path,label\na/0.png,-1\n", "line 2: label is '-1'; expected an integer"),
    ("path,label\na/0.png,cat\n", "line 2: label is 'cat'"),
    ("path,label\na/9.png,1\n", r"line 2: there is no file .*a/9\.png"),
    ("path,label\na,1\n", "line 2: there is no file"),
    ('path,label\n"a/0.png,1\n', "cannot be read as a list of images"),
    ("path,label\nlist.csv,1\n", r"list\.csv cannot be decoded: cannot ident"),
    ("path,label\nshort.jpg,1\n", r"short\.jpg cannot be decoded: .*truncated"),
  ],
)
def test_bad_lists_and_files_are_told(folder, text, message):
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  _write(folder, "whole.jpg", noise)
  whole = (folder / "whole.jpg").read_bytes()
  (folder / "short.jpg").write_bytes(whole[: len(whole) // 2])
  if text is not None:
    raw = text if isinstance(text, bytes) else text.encode()
    (folder / "list.csv").write_bytes(raw)
  with pytest.raises(data.DataError, match=message):
    csv_source.read_images(folder / "list.csv", size=4)


@pytest.mark.parametrize(
  ("name", "settings", "message"),
  [
    ("train.csv", {}, "the CSV files of two parts, such as"),
    ("train.csv,", {}, "two parts"),
    ("a.csv,train.csv,test.csv", {}, "two parts"),
    ("train.csv,none.csv", {}, r"none\.csv cannot be read"),
    ("train.csv,test.csv", {"crop": 1.5}, r"crop 1\.5; expected"),
    ("train.csv,test.csv", {"size": 0}, "size is 0"),
  ],
)
def test_bad_names_and_settings_are_told(folder, name, settings, message):
  with pytest.raises(data.DataError, match=message):
    data.load(name, data_dir=folder, **settings)


def test_an_unknown_resampling_is_told(folder):
  with pytest.raises(data.DataError, match="'cubic'; expected one of bilinear"):
    csv_source.decode([folder / "a/0.png"], resample="cubic")


def test_a_folder_without_images_is_told(folder):
  with pytest.raises(data.DataError, match=r"lists no images in .*c; expected"):
    csv_source.read_list(folder / "train.csv", within="c")


def test_files_without_labels(folder):
  (folder / "a" / "notes.txt").write_text("no image")
  found = csv_source.find_files(folder)
  names = [str(file.relative_to(folder)) for file in found]
  assert names == ["a/0.png", "a/1.png", "b/2.png", "b/3.png"]
  (folder / "some.csv").write_text("size,path\n3,b/3.png\n4,a/0.png\n")
  found = csv_source.find_files(folder / "some.csv")
  assert found == [folder / "b" / "3.png", folder / "a" / "0.png"]
  # Labels are no matter.
  assert len(csv_source.find_files(folder / "train.csv")) == 3


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("image\na/0.png\n", r"has the columns \['image'\]; expected path"),
    ("path\n", "has no images; expected the paths"),
    ("path\na/9.png\n", r"line 2: there is no file .*a/9\.png"),
    ("path,x\n,3\n", "line 2: path is empty"),
  ],
)
def test_bad_lists_without_labels(folder, text, message):
  (folder / "some.csv").write_text(text)
  with pytest.raises(data.DataError, match=message):
    csv_source.find_files(folder / "some.csv")


def test_a_folder_of_no_images_and_no_folder_are_told(folder):
  (folder / "empty").mkdir()
  with pytest.raises(data.DataError, match=r"has no images; expected .*\.png"):
    csv_source.find_files(folder / "empty")
  with pytest.raises(data.DataError, match="cannot be read as a list"):
    csv_source.find_files(folder / "nowhere")
