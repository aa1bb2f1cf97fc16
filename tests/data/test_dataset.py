"""What a data set must be, and the three parts of a proxy."""

import numpy as np
import pytest

from asga_jax import data
from asga_jax.data import dataset as dataset_lib


def _dataset(counts=(20, 10), **changes):
  """Images whose one pixel is their own number."""
  total = sum(counts)
  fields = {
    "name": "tiny",
    "train_images": np.arange(total, dtype=np.uint8).reshape(-1, 1, 1, 1),
    "train_labels": np.repeat(np.arange(len(counts)), counts).astype(np.int32),
    "test_images": np.full((2, 1, 1, 1), 255, np.uint8),
    "test_labels": np.zeros(2, np.int32),
    "class_names": tuple("abcdefgh"[: len(counts)]),
  }
  return dataset_lib.Dataset(**{**fields, **changes})


def test_moments_are_those_of_the_training_pixels():
  images = np.random.default_rng(0).integers(
    0, 256, (1203, 5, 4, 3), dtype=np.uint8
  )
  images[..., 1] = 7
  dataset = _dataset(
    train_images=images,
    train_labels=np.zeros(1203, np.int32),
    test_images=images[:2],
  )
  scaled = images.astype(np.float64) / 255
  np.testing.assert_allclose(dataset.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(
    dataset.std, scaled.std((0, 1, 2)), rtol=1e-9, atol=1e-12
  )
  assert dataset.image_shape == (5, 4, 3)
  assert dataset.num_classes == 2


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"train_images": np.zeros((30, 1, 1, 1), np.float32)},
      r"'tiny', train: .*uint8 .*found float32 of shape \[30, 1, 1, 1\]",
    ),
    (
      {"test_images": np.zeros((2, 4, 1), np.uint8)},
      r"'tiny', test: .*found uint8 of shape \[2, 4, 1\]",
    ),
    (
      {"test_images": np.zeros((2, 2, 1, 1), np.uint8)},
      r"found \[2, 1, 1\] beside \[1, 1, 1\]",
    ),
    (
      {"test_images": np.zeros((0, 1, 1, 1), np.uint8)},
      r"N > 0; found uint8 of shape \[0, 1, 1, 1\]",
    ),
    ({"test_labels": np.zeros(2, np.int64)}, "int32 .*found int64"),
    ({"test_labels": np.zeros(3, np.int32)}, r"shape \[2\].*shape \[3\]"),
    ({"test_labels": np.full(2, -1, np.int32)}, r"\[0, 2\); found -1 to -1"),
    ({"class_names": ("a",)}, r"train: labels must lie in \[0, 1\); found 0"),
  ],
)
def test_images_of_the_wrong_form_are_refused(changes, message):
  with pytest.raises(data.DataError, match=message):
    _dataset(**changes)


def test_split_partitions_every_class_alike():
  dataset = _dataset((40, 20, 60))
  splits = data.split_proxy(dataset, heldout_fraction=0.25, seed=0)
  train, heldout = splits.train, splits.heldout
  np.testing.assert_array_equal(np.bincount(heldout.labels), [10, 5, 15])
  np.testing.assert_array_equal(np.bincount(train.labels), [30, 15, 45])
  # Together they are the training images, each once, with its own label.
  numbers = np.concatenate([train.images.ravel(), heldout.images.ravel()])
  np.testing.assert_array_equal(np.sort(numbers), np.arange(120))
  for part in (train, heldout):
    np.testing.assert_array_equal(
      part.labels, dataset.train_labels[part.images.ravel()]
    )
  np.testing.assert_array_equal(splits.report.images, dataset.test_images)


def test_split_depends_on_the_seed_alone():
  dataset = _dataset((40, 20))
  first, again, other = (
    data.split_proxy(dataset, heldout_fraction=0.5, seed=seed).heldout.images
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_no_fraction_gives_an_empty_heldout():
  splits = data.split_proxy(_dataset(), heldout_fraction=0, seed=0)
  assert len(splits.heldout) == 0
  assert splits.heldout.images.shape == (0, 1, 1, 1)
  np.testing.assert_array_equal(splits.train.images.ravel(), np.arange(30))


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_fraction_outside_its_range_is_refused(fraction):
  with pytest.raises(ValueError, match=f"heldout_fraction is {fraction}"):
    data.split_proxy(_dataset(), heldout_fraction=fraction, seed=0)


@pytest.mark.parametrize(
  ("fraction", "message"), [(0.01, "0 of the 20"), (0.99, "20 of the 20")]
)
def test_fraction_that_empties_a_class_is_refused(fraction, message):
  with pytest.raises(data.DataError, match=f"puts {message}.*class 'a'"):
    data.split_proxy(_dataset(), heldout_fraction=fraction, seed=0)
