"""Networks that others trained, and the images that they are evaluated on."""

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

import asga_jax
from asga_jax import data as data_lib
from asga_jax import models
from asga_jax.data import augmentation, csv_source, normalisations
from asga_jax.xla import lowering

# Flags of all that import it.
DATA = flags.DEFINE_string("data", "", "Where weights and images are.")
OUTPUT = flags.DEFINE_string("output", "runs/imagenet", "Where results go.")
NETWORK = flags.DEFINE_multi_string("network", None, "Which; all if none.")
PART = flags.DEFINE_multi_string(
  "part", ["woof500", "mixed227", "nette224"], "Which parts, in float."
)
_BATCH = flags.DEFINE_integer("batch_size", 50, "Of images at a time.")


class Folder(NamedTuple):
  """Images that are prepared alike."""

  name: str
  crop: float = 1.0
  resample: str = "bicubic"
  # Whether only images of the classes of the folder before it are taken.
  alike: bool = False


# The 500 images of ten classes of dogs are 488 of 320 pixels, and 12 that are
# there in one size with images of other classes.
PARTS: Mapping[str, Sequence[Folder]] = {
  "woof500": [
    Folder("woof320", 0.875, "bilinear"),
    Folder("mixed227", alike=True),
  ],
  "mixed227": [Folder("mixed227")],
  "nette224": [Folder("nette224")],
}
SIZE = 224


class Published(NamedTuple):
  """A network whose weights others trained."""

  model: str  # of models.CONSTRUCTORS
  weights: str  # the name of the file begins with it
  name_map: str
  normalisation: str
  classes: int = 1000
  # The largest share of the short side that is kept.
  crop: float = 1.0


NETWORKS: Mapping[str, Published] = {
  "EfficientNet-Lite0": Published(
    "efficientnet_lite0",
    "efficientnet_lite0",
    "efficientnet_pytorch",
    "efficientnet_lite",
    # As its authors do.
    crop=0.875,
  ),
  "MobileNetV2": Published(
    "mobilenet_v2",
    "mobilenetv2_qat8_flipped",
    "torchvision",
    "tensorflow_flipped",
  ),
  "ResNet-18": Published(
    "resnet18", "resnet18_productquantized", "torchvision", "torchvision"
  ),
  "ResNet-20": Published(
    "resnet20_a", "cifar10_resnet20", "resnet_cifar10", "torchvision", 10
  ),
  "ResNet-56": Published(
    "resnet56_a", "cifar10_resnet56", "resnet_cifar10", "torchvision", 10
  ),
}


def find_data(given: str) -> pathlib.Path:
  """Return the folder of the data; raises ValueError if it is not there."""
  tfds = os.environ.get("ASGA_DATA_DIR", "")
  if not given and not tfds:
    raise ValueError(
      "there are no data: expected --data=DIR, or ASGA_DATA_DIR beside weights/"
      " and imagenet/"
    )
  root = pathlib.Path(given) if given else pathlib.Path(tfds).parent
  for name in ("weights", "imagenet/val.csv", "imagenet/calibration.csv"):
    if not (root / name).exists():
      raise ValueError(
        f"there is no {root / name}; expected --data=DIR with it"
      )
  return root


def load_network(name: str, root: pathlib.Path) -> nnx.Module:
  """Build a network and fill it; raises ValueError without its weights."""
  given = NETWORKS[name]
  found = sorted((root / "weights").glob(f"{given.weights}*.safetensors"))
  if not found:
    raise ValueError(
      f"{root / 'weights'} has no {given.weights}*.safetensors; expected the"
      f" weights of {name}"
    )
  network = models.constructor(given.model)(
    given.classes,
    conv_general_dilated=lowering.conv_general_dilated,
    rngs=nnx.Rngs(0),
  )
  return asga_jax.load_weights(network, found[0], name_map=given.name_map)


def preparation(name: str) -> Callable[[np.ndarray], np.ndarray]:
  """Make the function from stored images to what a network reads."""
  given = normalisations.find(NETWORKS[name].normalisation)
  assert given is not None

  def prepare(images: np.ndarray) -> np.ndarray:
    normalised = augmentation.preprocess(
      jnp.asarray(given.turn(images)),
      mean=given.mean,
      std=given.std,
      size=images.shape[1],
    )
    return np.asarray(normalised)

  return prepare


def batches(name: str, images: np.ndarray) -> Iterator[np.ndarray]:
  """Yield what a network reads of stored images."""
  prepare = preparation(name)
  for start in range(0, len(images), _BATCH.value):
    yield prepare(images[start : start + _BATCH.value])


def read_parts(name: str, root: pathlib.Path) -> dict[str, data_lib.Split]:
  """Read the parts of the images that are asked for, as a network has them."""
  if NETWORKS[name].classes != 1000:
    found = data_lib.load("cifar10", data_dir=root / "tfds")
    return {"cifar10": data_lib.Split(found.test_images, found.test_labels)}
  return {
    part: _read_part(root, PARTS[part], NETWORKS[name].crop)
    for part in PART.value
  }


def _read_part(
  root: pathlib.Path, folders: Sequence[Folder], crop: float
) -> data_lib.Split:
  images: list[np.ndarray] = []
  labels: list[int] = []
  for folder in folders:
    rows = csv_source.read_list(
      root / "imagenet" / "val.csv", within=f"val/{folder.name}"
    )
    if folder.alike:
      rows = [row for row in rows if row.label in set(labels)]
    images.append(
      csv_source.decode(
        [row.path for row in rows],
        size=SIZE,
        crop=folder.crop if folder.alike else min(folder.crop, crop),
        resample=folder.resample,
      )
    )
    labels += [row.label for row in rows]
  return data_lib.Split(np.concatenate(images), np.array(labels, np.int32))
