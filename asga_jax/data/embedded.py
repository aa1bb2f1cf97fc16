"""The data sets that come with the package or with scikit-learn."""

import importlib.resources
from collections.abc import Callable, Mapping

import numpy as np

from asga_jax.data import dataset as dataset_lib

FASHION_CLASSES = (
  "T-shirt/top",
  "Trouser",
  "Pullover",
  "Dress",
  "Coat",
  "Sandal",
  "Shirt",
  "Sneaker",
  "Bag",
  "Ankle boot",
)

_FASHION_FILE = "fashion_mnist_8k.npz"
_DIGITS_TEST_FRACTION = 0.2
_DIGITS_SEED = 0


def fashion_mnist_8k() -> dataset_lib.Dataset:
  """Read 6,000 training and 2,000 test images of Fashion-MNIST.

  28x28 gray, 600 and 200 a class, a fixed choice from the 60,000 and 10,000
  of Xiao et al. 2017 (https://arxiv.org/abs/1708.07747), made by
  `make_fashion_mnist_8k.py` and kept in the package.

  Raises:
    DataError: if the package was installed without the file.
  """
  resource = importlib.resources.files("asga_jax.data") / _FASHION_FILE
  if not resource.is_file():
    raise dataset_lib.DataError(
      f"data set 'fashion_mnist_8k' not found: looked for {resource}; it is "
      "part of the package, so install that again, or make the file with "
      "python -m asga_jax.data.make_fashion_mnist_8k --source=DIR"
    )
  with resource.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
    return dataset_lib.Dataset(
      name="fashion_mnist_8k",
      train_images=arrays["train_images"],
      train_labels=arrays["train_labels"].astype(np.int32),
      test_images=arrays["test_images"],
      test_labels=arrays["test_labels"].astype(np.int32),
      class_names=FASHION_CLASSES,
    )


def digits() -> dataset_lib.Dataset:
  """Read scikit-learn's 1,797 handwritten digits, 8x8 gray.

  The source has no split: a fifth of each class, by a fixed seed, is the test
  part. The source's 17 levels 0..16 are scaled to 0..255.
  """
  # scikit-learn takes a second to import, and only this function needs it.
  from sklearn import datasets as sklearn_datasets

  source = sklearn_datasets.load_digits()
  images = np.round(source.images[..., None] * (255 / 16)).astype(np.uint8)
  labels = source.target.astype(np.int32)
  generator = np.random.default_rng(_DIGITS_SEED)
  test = np.zeros(len(labels), bool)
  for label in range(10):
    members = generator.permutation(np.flatnonzero(labels == label))
    test[members[: round(_DIGITS_TEST_FRACTION * len(members))]] = True
  return dataset_lib.Dataset(
    name="digits",
    train_images=images[~test],
    train_labels=labels[~test],
    test_images=images[test],
    test_labels=labels[test],
    class_names=tuple(str(digit) for digit in range(10)),
    flip=False,
  )


SOURCES: Mapping[str, Callable[[], dataset_lib.Dataset]] = {
  "fashion_mnist_8k": fashion_mnist_8k,
  "digits": digits,
}
