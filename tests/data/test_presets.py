"""Presets against the filters and crops that they are defined by."""

import numpy as np
import PIL.Image
import pytest

from asga_jax import data
from asga_jax.data import decoding, presets


def _triangle(x):
  return np.maximum(0, 1 - abs(x))


def _cubic(x, a=-0.5):
  x = abs(x)
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def _weights(filter_, start, stop, length, wanted):
  """Weights of resizing a part, smoothed where it shrinks."""
  scale = (stop - start) / wanted
  centres = start + (np.arange(wanted) + 0.5) * scale
  found = filter_(
    (np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1.0)
  )
  return found / found.sum(1, keepdims=True)


def _resized(pixels, filter_, box, shape):
  left, top, right, bottom = box
  rows = _weights(filter_, top, bottom, pixels.shape[0], shape[0])
  columns = _weights(filter_, left, right, pixels.shape[1], shape[1])
  across = np.einsum("wc,rck->rwk", columns, pixels.astype(float))
  return np.einsum("hr,rwk->hwk", rows, across)


def _torchvision(pixels, size):
  """Resize(size * 8 / 7) of the short side, then CenterCrop(size)."""
  height, width = pixels.shape[:2]
  short = size * 8 // 7
  if height < width:
    shape = short, int(short * width / height)
  else:
    shape = int(short * height / width), short
  whole = _resized(pixels, _triangle, (0, 0, width, height), shape)
  top, left = (round((extent - size) / 2) for extent in shape)
  return whole[top : top + size, left : left + size]


def _cropped(pixels, size, side, filter_):
  height, width = pixels.shape[:2]
  top, left = (height - side) // 2, (width - side) // 2
  box = left, top, left + side, top + side
  return _resized(pixels, filter_, box, (size, size))


@pytest.mark.parametrize("shape", [(90, 120), (131, 77), (64, 64)])
@pytest.mark.parametrize("name", presets.PRESETS)
def test_evaluation_sees_what_the_definition_says(name, shape):
  size = 56
  rng = np.random.default_rng(0)
  # Bicubic leaves 0 to 255 for none of these, which pillow would cut off.
  pixels = rng.integers(64, 192, (*shape, 3), dtype=np.uint8)
  found = decoding.centre(PIL.Image.fromarray(pixels), size, presets.find(name))
  assert found.shape == (size, size, 3)
  if name == "torchvision":
    want = _torchvision(pixels, size)
  elif name == "efficientnet_lite":
    # 32 pixels around it: 56 of 88.
    side = round(min(shape) * 56 / 88)
    want = _cropped(pixels, size, side, _cubic)
  else:
    side = round(min(shape) * 0.875)
    want = _cropped(pixels, size, side, _triangle)
  # Pillow rounds after each direction, and weights to 22 bits.
  np.testing.assert_allclose(found, want, atol=2)
  assert abs(found - want).mean() < 0.5


def test_published_sizes_and_what_a_policy_is_told():
  # EfficientNet-Lite 0 and 4; torchvision's 256 for 224.
  shares = [presets.find("efficientnet_lite").share(n) for n in (224, 300)]
  assert shares == [0.875, 300 / 332]
  told = presets.settings("torchvision", 224)
  assert told["steps"] == ["resize short side to 256", "centre 224"]
  assert told["mean"] == [0.485, 0.456, 0.406]
  told = presets.settings("tensorflow_flipped", 224)
  assert told["steps"] == ["centre 0.875", "resize to 224"]
  assert told["flipped"] is True
  assert told["std"] == [127.5 / 255] * 3


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"preset": "timm"}, "preset is 'timm'; expected one of torchvision, ten"),
    ({"preset": "tensorflow", "crop": 0.9}, r"crop 0\.9 .* a preset alone"),
    (
      {"preset": "tensorflow", "normalisation": "torchvision"},
      "normalisation 'torchvision'; expected a preset alone",
    ),
    ({}, "preset and normalisation are '', and mean and deviation"),
  ],
)
def test_unknown_and_contradicting_presets_are_told(settings, message):
  with pytest.raises(data.DataError, match=message):
    data.stream("train,val", **settings)
