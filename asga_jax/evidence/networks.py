"""Networks that others trained: how each is built and what it reads."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax import models
from asga_jax.data import augmentation, normalisations
from asga_jax.training import steps
from asga_jax.weights import load
from asga_jax.xla import lowering


class Network(NamedTuple):
  """A trained network: how it is built, and where its weights are."""

  model: str  # of models.CONSTRUCTORS
  # A file, or what the name of one in weights/ begins with.
  weights: str
  name_map: str = ""
  normalisation: str = ""
  classes: int = 1000
  # The largest share of the short side that is kept.
  crop: float = 1.0
  size: int = 224


NETWORKS: Mapping[str, Network] = {
  "EfficientNet-Lite0": Network(
    "efficientnet_lite0",
    "efficientnet_lite0",
    "efficientnet_pytorch",
    "efficientnet_lite",
    # As its authors do.
    crop=0.875,
  ),
  "MobileNetV2": Network(
    "mobilenet_v2",
    "mobilenetv2_qat8_flipped",
    "torchvision",
    "tensorflow_flipped",
  ),
  "ResNet-18": Network(
    "resnet18", "resnet18_productquantized", "torchvision", "torchvision"
  ),
  "ResNet-20": Network(
    "resnet20_a",
    "cifar10_resnet20",
    "resnet_cifar10",
    "torchvision",
    classes=10,
    size=32,
  ),
  "ResNet-56": Network(
    "resnet56_a",
    "cifar10_resnet56",
    "resnet_cifar10",
    "torchvision",
    classes=10,
    size=32,
  ),
}


def find_data(given: str) -> pathlib.Path:
  """Return the folder of the data.

  Args:
    given: the folder, which holds weights/, imagenet/ and tfds/; '' for the
      one that ASGA_DATA_DIR lies in.

  Raises:
    ValueError: there is none.
  """
  tfds = os.environ.get("ASGA_DATA_DIR", "")
  if not given and not tfds:
    raise ValueError(
      "there are no data: expected --data=DIR, or ASGA_DATA_DIR beside weights/"
      " and imagenet/"
    )
  root = pathlib.Path(given) if given else pathlib.Path(tfds).parent
  if not root.is_dir():
    raise ValueError(f"there is no folder {root}; expected one with the data")
  return root


def find_weights(network: Network, root: pathlib.Path) -> pathlib.Path:
  """Return the file of a network's weights; raises ValueError without it."""
  if pathlib.Path(network.weights).is_file():
    return pathlib.Path(network.weights)
  found = sorted((root / "weights").glob(f"{network.weights}*.safetensors"))
  if not found:
    raise ValueError(
      f"{root / 'weights'} has no {network.weights}*.safetensors; expected the"
      f" weights of {network.model}"
    )
  return found[0]


def load_network(network: Network, root: pathlib.Path) -> nnx.Module:
  """Build a network and fill it; raises ValueError without its weights."""
  path = find_weights(network, root)
  made = models.constructor(network.model)(
    network.classes,
    conv_general_dilated=lowering.conv_general_dilated,
    rngs=nnx.Rngs(0),
  )
  loaded = load.load_weights(made, path, name_map=network.name_map or None)
  loaded.eval()
  return loaded


# Of what draws nothing.
_NO_KEY: Any = None


def preparation(network: Network) -> Callable[[np.ndarray], np.ndarray]:
  """Make the function from stored images to what a network reads."""
  prepare = step_input(network)

  def prepared(images: np.ndarray) -> np.ndarray:
    return np.asarray(prepare(_NO_KEY, {"image": jnp.asarray(images)})["image"])

  return prepared


@functools.cache
def step_input(network: Network, flip: bool | None = None) -> steps.PrepareFn:
  """Make the function from a raw batch to what a network reads, for a step.

  Args:
    network: its normalisation and size.
    flip: whether half of the images are mirrored, after a crop at random from
      a margin of an eighth; None leaves images as they are.

  Returns:
    A function of (key, batch), the same one for the same arguments.
  """
  given = normalisations.find(network.normalisation)
  if given is None:
    given = normalisations.Normalisation((0.5,) * 3, (0.5,) * 3)

  def prepare(key: Any, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
    images: Any = batch["image"]
    if flip is not None:
      pad = network.size // 8
      images = augmentation.augment(key, images, pad=pad, flip=flip)
    turned: Any = given.turn(images)
    images = augmentation.preprocess(
      turned, mean=given.mean, std=given.std, size=network.size
    )
    return {**batch, "image": images}

  return prepare


def batches(
  network: Network, images: np.ndarray, size: int
) -> Iterator[np.ndarray]:
  """Yield what a network reads of stored images."""
  prepare = preparation(network)
  for start in range(0, len(images), size):
    yield prepare(images[start : start + size])
