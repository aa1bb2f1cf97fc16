"""Flags of benchmarks on networks that others trained."""

import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags
from flax import nnx

from asga_jax import data as data_lib
from asga_jax.evidence import images as images_lib
from asga_jax.evidence import networks as networks_lib

# Flags of all that import it.
DATA = flags.DEFINE_string("data", "", "Where weights and images are.")
OUTPUT = flags.DEFINE_string("output", "runs/imagenet", "Where results go.")
NETWORK = flags.DEFINE_multi_string("network", None, "Which; all if none.")
PART = flags.DEFINE_multi_string(
  "part", ["woof500", "mixed227", "nette224"], "Which parts, in float."
)
_BATCH = flags.DEFINE_integer("batch_size", 50, "Of images at a time.")

PARTS = images_lib.PARTS
NETWORKS = networks_lib.NETWORKS
SIZE = 224


def find_data(given: str) -> pathlib.Path:
  """Return the folder of the data; raises ValueError if it is not there."""
  root = networks_lib.find_data(given)
  for name in ("weights", "imagenet/val.csv", "imagenet/calibration.csv"):
    if not (root / name).exists():
      raise ValueError(
        f"there is no {root / name}; expected --data=DIR with it"
      )
  return root


def load_network(name: str, root: pathlib.Path) -> nnx.Module:
  """Build a network and fill it; raises ValueError without its weights."""
  return networks_lib.load_network(NETWORKS[name], root)


def preparation(name: str) -> Callable[[np.ndarray], np.ndarray]:
  """Make the function from stored images to what a network reads."""
  return networks_lib.preparation(NETWORKS[name])


def batches(name: str, images: np.ndarray) -> Iterator[np.ndarray]:
  """Yield what a network reads of stored images."""
  yield from networks_lib.batches(NETWORKS[name], images, _BATCH.value)


def read_parts(name: str, root: pathlib.Path) -> dict[str, data_lib.Split]:
  """Read the parts of the images that are asked for, as a network has them."""
  given = NETWORKS[name]
  parts = PART.value if given.classes == 1000 else ["cifar10"]
  return {part: images_lib.read_target(part, given, root) for part in parts}
