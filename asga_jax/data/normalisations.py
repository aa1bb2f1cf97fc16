"""What published networks subtract from pixels and divide them by."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from asga_jax.data import dataset as dataset_lib


class Normalisation(NamedTuple):
  """How pixels become what a network reads."""

  # Of each channel, red, green and blue, of pixels / 255.
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  # Whether images are turned upside down and mirrored first: of networks whose
  # kernels are, so that symmetric padding stands for TensorFlow's.
  flipped: bool = False

  def turn(self, images: np.ndarray) -> np.ndarray:
    """Flip images [N, H, W, C] in height and width, or leave them."""
    return images[:, ::-1, ::-1] if self.flipped else images


def _of_pixels(center: float, spread: float) -> Normalisation:
  return Normalisation((center / 255,) * 3, (spread / 255,) * 3)


NORMALISATIONS: Mapping[str, Normalisation] = {
  # And of timm's networks that follow it.
  "torchvision": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  "efficientnet_lite": _of_pixels(127.0, 128.0),
  # Of TensorFlow's MobileNets: to -1..1.
  "tensorflow": _of_pixels(127.5, 127.5),
  "tensorflow_flipped": _of_pixels(127.5, 127.5)._replace(flipped=True),
}


def find(name: str) -> Normalisation | None:
  """Return that of a name, None for ''; raises DataError if unknown."""
  if name == "":
    return None
  if name not in NORMALISATIONS:
    raise dataset_lib.DataError(
      f"normalisation is {name!r}; expected one of "
      f"{', '.join(NORMALISATIONS)}, or '' for that of the training images"
    )
  return NORMALISATIONS[name]
