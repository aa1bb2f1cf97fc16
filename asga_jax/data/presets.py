"""How image files become what a published network reads, by name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from asga_jax.data import dataset as dataset_lib
from asga_jax.data import normalisations


class Preset(NamedTuple):
  """How an image is cropped, resized and normalised for evaluation.

  Training takes the resampling and the normalisation of it, and crops at
  random.
  """

  # One of normalisations.NORMALISATIONS; '' for that of the training images.
  normalisation: str = ""
  # Share of the short side that is kept; None for size / (size + 32).
  crop: float | None = 1.0
  resample: str = "bilinear"  # or 'bicubic'
  # Whether the whole image is resized and then cropped; otherwise a square is
  # cropped and then resized.
  resize_first: bool = False

  def share(self, size: int) -> float:
    """Give the share of the short side that images of a size show."""
    return size / (size + 32) if self.crop is None else self.crop


PRESETS: Mapping[str, Preset] = {
  # Resize(256), CenterCrop(224).
  "torchvision": Preset("torchvision", 0.875, resize_first=True),
  # MobileNets of TensorFlow; flipped: with kernels turned for symmetric pads.
  "tensorflow": Preset("tensorflow", 0.875),
  "tensorflow_flipped": Preset("tensorflow_flipped", 0.875),
  # 32 pixels around the crop, at every size of the family.
  "efficientnet_lite": Preset("efficientnet_lite", None, "bicubic"),
}


def find(
  name: str,
  *,
  crop: float = 1.0,
  normalisation: str = "",
  streamed: bool = False,
) -> Preset:
  """Return the preset of a name; of '' that of the settings beside it.

  Args:
    name: one of `PRESETS`, or ''.
    crop: see `Preset`.
    normalisation: see `Preset`.
    streamed: whether it is of images that are not in memory.

  Raises:
    DataError: an unknown name, settings beside a name, or a normalisation by
      images that are not in memory.
  """
  if not name:
    normalisations.find(normalisation)
    if streamed and not normalisation:
      raise dataset_lib.DataError(
        "preset and normalisation are '', and mean and deviation of images"
        " that are not in memory are not known; expected one of "
        + ", ".join(PRESETS)
      )
    return Preset(normalisation, crop)
  if name not in PRESETS:
    raise dataset_lib.DataError(
      f"preset is {name!r}; expected one of {', '.join(PRESETS)}, or '' for "
      "what crop and normalisation say"
    )
  if crop != 1.0 or normalisation:
    raise dataset_lib.DataError(
      f"preset is {name!r}, crop {crop} and normalisation {normalisation!r}; "
      "expected a preset alone, or '' and the two others"
    )
  return PRESETS[name]


def settings(name: str, size: int) -> dict[str, Any]:
  """List what a named preset does at a size, for JSON."""
  preset = find(name)
  known = normalisations.NORMALISATIONS[preset.normalisation]
  crop, resize = f"centre {preset.share(size):.4g}", f"resize to {size}"
  if preset.resize_first:
    crop = f"centre {size}"
    resize = f"resize short side to {round(size / preset.share(size))}"
  return {
    "preset": name,
    "steps": [resize, crop] if preset.resize_first else [crop, resize],
    "resample": preset.resample,
    "mean": list(known.mean),
    "std": list(known.std),
    "flipped": known.flipped,
  }
