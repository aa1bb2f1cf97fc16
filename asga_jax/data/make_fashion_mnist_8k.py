r"""Makes the embedded data set from the whole of Fashion-MNIST.

    python -m asga_jax.data.make_fashion_mnist_8k \
      --source=/usr/share/datasets/fashion-mnist

The source is the four files of https://github.com/zalandoresearch/fashion-mnist
as Debian's package dataset-fashion-mnist installs them. The same source gives
the same file, byte for byte (with the same version of zlib).
"""

import argparse
import gzip
import pathlib
from collections.abc import Sequence

import numpy as np

_SEED = 0
_PER_CLASS = {"train": 600, "test": 200}
_PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: pathlib.Path) -> np.ndarray:
  """Read a gzipped IDX file of unsigned bytes.

  Args:
    path: of the file. Its head is two zero bytes, the type (8), the rank, then
      each extent as a big-endian 32-bit integer.

  Returns:
    The array, dtype uint8.

  Raises:
    ValueError: if the head or the length is another.
  """
  content = gzip.decompress(path.read_bytes())
  if len(content) < 4 or content[:3] != b"\0\0\x08":
    raise ValueError(
      f"{path}: expected an IDX file of unsigned bytes, which begins with "
      f"00 00 08; found {content[:3].hex(' ')}"
    )
  rank = content[3]
  shape = np.frombuffer(content, ">u4", rank, 4).astype(int)
  data = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
  if data.size != shape.prod():
    raise ValueError(
      f"{path}: expected {shape.prod()} bytes of data for shape "
      f"{shape.tolist()}, found {data.size}"
    )
  return data.reshape(shape)


def choose(
  labels: np.ndarray, per_class: int, generator: np.random.Generator
) -> np.ndarray:
  """Draw `per_class` positions of each label; returns them in rising order."""
  chosen = [
    generator.choice(np.flatnonzero(labels == label), per_class, replace=False)
    for label in np.unique(labels)
  ]
  return np.sort(np.concatenate(chosen))


def make(source: pathlib.Path, target: pathlib.Path) -> None:
  """Write the chosen images and labels of both parts to `target`."""
  generator = np.random.default_rng(_SEED)
  arrays: dict[str, np.ndarray] = {}
  for part, prefix in _PREFIX.items():
    images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
    chosen = choose(labels, _PER_CLASS[part], generator)
    arrays[f"{part}_images"] = images[chosen][..., None]
    arrays[f"{part}_labels"] = labels[chosen]
  np.savez_compressed(target, allow_pickle=False, **arrays)


def main(argv: Sequence[str] | None = None) -> None:
  """Parse the command line and write the file."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--source", type=pathlib.Path, required=True)
  parser.add_argument(
    "--target",
    type=pathlib.Path,
    default=pathlib.Path(__file__).with_name("fashion_mnist_8k.npz"),
  )
  arguments = parser.parse_args(argv)
  make(arguments.source, arguments.target)


if __name__ == "__main__":
  main()
