"""The data sets inside the package and scikit-learn, and their making."""

import gzip
import importlib.resources
import pathlib

import numpy as np
import pytest

from asga_jax import data
from asga_jax.data import embedded, make_fashion_mnist_8k

_SOURCE = pathlib.Path("/usr/share/datasets/fashion-mnist")
_needs_source = pytest.mark.skipif(
  not _SOURCE.is_dir(), reason=f"no Debian dataset-fashion-mnist in {_SOURCE}"
)


def _rows(images):
  return {image.tobytes() for image in images}


def test_fashion_is_balanced_and_within_its_size():
  dataset = data.load("fashion_mnist_8k")
  assert dataset.train_images.shape == (6000, 28, 28, 1)
  assert dataset.test_images.shape == (2000, 28, 28, 1)
  np.testing.assert_array_equal(np.bincount(dataset.train_labels), [600] * 10)
  np.testing.assert_array_equal(np.bincount(dataset.test_labels), [200] * 10)
  # Mean and deviation of the whole set, as widely published.
  np.testing.assert_allclose(dataset.mean, 0.2860, atol=0.005)
  np.testing.assert_allclose(dataset.std, 0.3530, atol=0.005)
  folder = importlib.resources.files("asga_jax.data")
  assert len((folder / "fashion_mnist_8k.npz").read_bytes()) <= 4e6
  notice = (folder / "fashion_mnist_8k.LICENSE").read_text()
  assert "Copyright (c) 2017 Zalando SE" in notice
  assert "WITHOUT WARRANTY OF ANY KIND" in notice


def test_fashion_labels_belong_to_their_images():
  # Nearest class mean gets 67 to 68 % on Fashion-MNIST (Xiao et al. 2017 print
  # no such row; scikit-learn's NearestCentroid gives 0.677), chance is 10 %.
  dataset = data.load("fashion_mnist_8k")
  train = dataset.train_images.reshape(6000, -1).astype(np.float64)
  test = dataset.test_images.reshape(2000, -1).astype(np.float64)
  means = np.stack(
    [train[dataset.train_labels == label].mean(axis=0) for label in range(10)]
  )
  distances = ((test[:, None] - means) ** 2).sum(axis=2)
  accuracy = (distances.argmin(axis=1) == dataset.test_labels).mean()
  assert 0.63 < accuracy < 0.73


@_needs_source
def test_making_it_again_gives_the_same(tmp_path):
  targets = [tmp_path / "first.npz", tmp_path / "second.npz"]
  for target in targets:
    make_fashion_mnist_8k.main([f"--source={_SOURCE}", f"--target={target}"])
  assert targets[0].read_bytes() == targets[1].read_bytes()
  # Array by array: the bytes of a deflated file belong to a version of zlib.
  packaged = importlib.resources.files("asga_jax.data")
  with (
    np.load(targets[0], allow_pickle=False) as made,
    (packaged / "fashion_mnist_8k.npz").open("rb") as file,
  ):
    kept = np.load(file, allow_pickle=False)
    assert sorted(made.files) == sorted(kept.files)
    for name in kept.files:
      np.testing.assert_array_equal(made[name], kept[name])


@_needs_source
def test_it_stays_within_each_part_of_the_source():
  dataset = data.load("fashion_mnist_8k")
  train, test = (
    make_fashion_mnist_8k.read_idx(_SOURCE / f"{part}-images-idx3-ubyte.gz")
    for part in ("train", "t10k")
  )
  assert train.shape == (60000, 28, 28)
  assert _rows(dataset.train_images) <= _rows(train)
  assert _rows(dataset.test_images) <= _rows(test)
  assert not _rows(dataset.train_images) & _rows(dataset.test_images)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "begins with 00 00 08; found"),
    (b"\0\0\x0d\x01\0\0\0\1\0\0\0\0", "found 00 00 0d"),
    (b"\0\0\x08\x01\0\0\0\3ab", r"3 bytes of data for shape \[3\], found 2"),
  ],
)
def test_a_damaged_source_is_refused(tmp_path, content, message):
  path = tmp_path / "part.gz"
  path.write_bytes(gzip.compress(content))
  with pytest.raises(ValueError, match=message):
    make_fashion_mnist_8k.read_idx(path)


def test_idx_is_read_in_its_order(tmp_path):
  path = tmp_path / "part.gz"
  head = b"\0\0\x08\x02" + b"\0\0\0\2" + b"\0\0\0\3"
  path.write_bytes(gzip.compress(head + bytes([1, 2, 3, 4, 5, 6])))
  np.testing.assert_array_equal(
    make_fashion_mnist_8k.read_idx(path), [[1, 2, 3], [4, 5, 6]]
  )


def test_digits_are_those_of_scikit_learn():
  from sklearn import datasets as sklearn_datasets

  source = sklearn_datasets.load_digits()
  dataset = data.load("digits")
  assert dataset.image_shape == (8, 8, 1)
  assert not dataset.flip
  assert len(dataset.train_labels) + len(dataset.test_labels) == 1797
  images = np.concatenate([dataset.train_images, dataset.test_images])
  labels = np.concatenate([dataset.train_labels, dataset.test_labels])
  levels = np.round(images[..., 0] * (16 / 255))
  ours = sorted((x.tobytes(), y) for x, y in zip(levels, labels, strict=True))
  theirs = sorted(
    (x.tobytes(), y) for x, y in zip(source.images, source.target, strict=True)
  )
  assert ours == theirs
  shares = np.bincount(dataset.test_labels) / np.bincount(labels)
  np.testing.assert_allclose(shares, 0.2, atol=0.005)
  again = embedded.digits()
  np.testing.assert_array_equal(again.test_images, dataset.test_images)


def test_a_package_without_its_file_says_so(monkeypatch):
  monkeypatch.setattr(embedded, "_FASHION_FILE", "absent.npz")
  with pytest.raises(data.DataError, match=r"looked for .*absent\.npz"):
    data.load("fashion_mnist_8k")
