"""One encoded image to pixels: its centre, or a random part of it."""

import io
import math
import pathlib

import numpy as np
import PIL.Image

from asga_jax.data import dataset as dataset_lib
from asga_jax.data import presets

RESAMPLING = {
  "bilinear": PIL.Image.Resampling.BILINEAR,
  "bicubic": PIL.Image.Resampling.BICUBIC,
}
# Of a random crop: its share of the image's area, its width by its height.
_AREAS, _RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)
_TRIES = 10


def decode(file: bytes | pathlib.Path, name: str) -> PIL.Image.Image:
  """Decode a file, or what it holds, to colours; raises DataError."""
  # Pillow raises errors of many kinds on damaged files.
  try:
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    with PIL.Image.open(source) as opened:
      return opened.convert("RGB")
  except Exception as error:
    why = str(error).partition(" <_io.BytesIO")[0]
    raise dataset_lib.DataError(
      f"{name} cannot be decoded: {why}; expected a whole image file"
    ) from error


def centre(
  image: PIL.Image.Image, size: int, preset: presets.Preset
) -> np.ndarray:
  """Take what evaluation sees of an image.

  Args:
    image: in colours.
    size: height and width wanted.
    preset: see `presets.Preset`.

  Returns:
    Shape [size, size, 3], dtype uint8.
  """
  resample, share = RESAMPLING[preset.resample], preset.share(size)
  if preset.resize_first:
    # As torchvision's Resize and CenterCrop round.
    short = round(size / share)
    scaled = [extent * short // min(image.size) for extent in image.size]
    image = image.resize((scaled[0], scaled[1]), resample)
    left, top = (round((extent - size) / 2) for extent in scaled)
    return np.asarray(image.crop((left, top, left + size, top + size)))
  side = max(1, round(min(image.size) * share))
  left, top = ((extent - side) // 2 for extent in image.size)
  box = (left, top, left + side, top + side)
  if side == size:
    return np.asarray(image.crop(box))
  return np.asarray(image.resize((size, size), resample, box=box))


def random_crop(
  image: PIL.Image.Image, size: int, resample: str, rng: np.random.Generator
) -> np.ndarray:
  """Take a random part of an image, as torchvision's RandomResizedCrop does.

  Args:
    image: in colours.
    size: height and width wanted.
    resample: 'bilinear' or 'bicubic'.
    rng: decides the part.

  Returns:
    Shape [size, size, 3], dtype uint8.
  """
  box = random_box(*image.size, rng)
  resized = image.resize((size, size), RESAMPLING[resample], box=box)
  return np.asarray(resized)


def random_box(
  width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
  """Draw a part: left, top, right and bottom, in pixels."""
  low, high = (math.log(ratio) for ratio in _RATIOS)
  for _ in range(_TRIES):
    area = width * height * rng.uniform(*_AREAS)
    ratio = math.exp(rng.uniform(low, high))
    wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < wide <= width and 0 < tall <= height:
      left = int(rng.integers(width - wide + 1))
      top = int(rng.integers(height - tall + 1))
      return left, top, left + wide, top + tall
  # The largest part of a shape that is allowed, in the middle.
  wide = max(1, min(width, round(height * _RATIOS[1])))
  tall = max(1, min(height, round(width / _RATIOS[0])))
  left, top = (width - wide) // 2, (height - tall) // 2
  return left, top, left + wide, top + tall
