"""Augmentation and preprocessing against numpy."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from asga_jax.data import augmentation


def _images(shape, seed=0):
  return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def _candidates(image, pad, flip):
  """Every crop of the padded image, by (row, column, mirrored)."""
  height, width, _ = image.shape
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  return {
    (row, column, mirrored): crop[:, ::-1] if mirrored else crop
    for row in range(2 * pad + 1)
    for column in range(2 * pad + 1)
    for crop in [padded[row : row + height, column : column + width]]
    for mirrored in ((False, True) if flip else (False,))
  }


@pytest.mark.parametrize(
  ("pad", "flip"), [(2, True), (2, False), (0, True), (1, True)]
)
def test_each_image_is_one_of_its_crops_and_all_are_drawn(pad, flip):
  images = _images((600, 5, 7, 3))
  augmented = np.asarray(
    jax.jit(lambda key, x: augmentation.augment(key, x, pad=pad, flip=flip))(
      jax.random.key(0), images
    )
  )
  assert augmented.dtype == np.uint8
  counts = {}
  for image, result in zip(images, augmented, strict=True):
    drawn = [
      place
      for place, crop in _candidates(image, pad, flip).items()
      if np.array_equal(crop, result)
    ]
    assert len(drawn) == 1
    counts[drawn[0]] = counts.get(drawn[0], 0) + 1
  places = (2 * pad + 1) ** 2 * (2 if flip else 1)
  assert len(counts) == places
  # Uniform: chi-squared below its 99.9 % point, about k + 3.1 sqrt(2k) + 6.
  expected = 600 / places
  statistic = sum((n - expected) ** 2 / expected for n in counts.values())
  assert statistic < places + 3.1 * np.sqrt(2 * places) + 6


def test_no_pad_and_no_flip_is_the_identity():
  images = _images((3, 4, 4, 1))
  result = augmentation.augment(jax.random.key(0), images, pad=0, flip=False)
  np.testing.assert_array_equal(result, images)


def test_draws_follow_the_key():
  images = jnp.asarray(_images((8, 6, 6, 1)))
  first, again, other = (
    augmentation.augment(jax.random.key(seed), images) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_a_sharded_batch_gives_the_same():
  if jax.device_count() < 2:
    pytest.skip("one device; XLA_FLAGS=--xla_force_host_platform_device_count")
  mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec("data")
  )
  images = _images((8, 6, 6, 3))
  step = jax.jit(augmentation.augment)
  whole = step(jax.random.key(0), images)
  sharded = jax.device_put(images, sharding)
  parts = step(jax.random.key(0), sharded)
  np.testing.assert_array_equal(whole, parts)
  text = step.lower(jax.random.key(0), sharded).compile().as_text()
  assert "all-gather" not in text


def test_negative_pad_is_refused():
  with pytest.raises(ValueError, match="pad is -1"):
    augmentation.augment(jax.random.key(0), jnp.zeros((1, 2, 2, 1)), pad=-1)


def test_gray_28_is_padded_by_black_and_repeated():
  images = _images((2, 28, 28, 1))
  result = augmentation.preprocess(images, mean=(0.3,), std=(0.25,))
  assert result.dtype == jnp.float32
  expected = np.zeros((2, 32, 32, 1))
  expected[:, 2:30, 2:30] = images / 255
  expected = np.repeat((expected - 0.3) / 0.25, 3, axis=3)
  np.testing.assert_allclose(result, expected, atol=1e-5)


def test_digits_are_enlarged_four_times():
  images = _images((2, 8, 8, 1))
  result = augmentation.preprocess(images, mean=(0.0,), std=(1.0,), channels=1)
  expected = np.kron(images[..., 0] / 255, np.ones((1, 4, 4)))
  np.testing.assert_allclose(result[..., 0], expected, atol=1e-6)


def test_colours_keep_their_own_moments_and_odd_gaps_end_below():
  images = _images((2, 7, 5, 3))
  mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
  result = augmentation.preprocess(images, mean=mean, std=std, size=10)
  expected = np.zeros((2, 10, 10, 3))
  expected[:, 1:8, 2:7] = images / 255
  np.testing.assert_allclose(
    result, (expected - np.array(mean)) / np.array(std), atol=1e-5
  )


def test_images_may_bring_their_own_moments():
  images = _images((4, 6, 6, 3))
  mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
  once = augmentation.preprocess(images, mean=mean, std=std)
  each = augmentation.preprocess(
    images,
    mean=jnp.tile(jnp.asarray(mean), (4, 1)),
    std=jnp.tile(jnp.asarray(std), (4, 1)),
  )
  np.testing.assert_array_equal(once, each)
  with pytest.raises(ValueError, match="for each of 4 images"):
    augmentation.preprocess(images, mean=jnp.zeros((5, 3)), std=std)


@pytest.mark.parametrize(
  ("shape", "dtype", "settings", "message"),
  [
    ((1, 4, 4, 1), np.float32, {}, "must be uint8 .*found float32"),
    ((4, 4, 1), np.uint8, {}, r"found uint8 of shape \[4, 4, 1\]"),
    ((1, 64, 48, 1), np.uint8, {}, "size is 32, and images are 64x48"),
    ((1, 4, 4, 3), np.uint8, {"channels": 1}, "channels is 1.*have 3"),
    ((1, 4, 4, 3), np.uint8, {}, "expected 3 numbers"),
  ],
)
def test_images_of_the_wrong_form_are_refused(shape, dtype, settings, message):
  with pytest.raises(ValueError, match=message):
    augmentation.preprocess(
      jnp.zeros(shape, dtype), mean=(0.0,), std=(1.0,), **settings
    )
