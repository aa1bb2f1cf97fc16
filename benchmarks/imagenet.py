"""Published networks on ImageNet's images, in float and at 8 bits.

First top-1 of five networks with weights that others trained, in float. Then,
of those for ImageNet, 8 bits everywhere without any training: ranges come from
images of a calibration set, none of which is evaluated; top-1 in JAX and of the
exported file in a plain session of onnxruntime, and the share of images with
the same prediction. Beside that stands the share of predictions that JAX itself
keeps when all batch norms scale by a millionth more: values on the border of
two codes fall to the other side, and another order of sums does as much. Prints
both tables, and writes them to --output.

--data names a folder with `weights/NAME.safetensors`, `imagenet/val.csv` and
`imagenet/calibration.csv` (lists of images with labels 0 to 999, see
asga_jax/data/csv_source.py) and `tfds/cifar10`; without it that is the folder
which ASGA_DATA_DIR lies in.

python benchmarks/imagenet.py --data=DIR
"""

import json
import math
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from absl import app, flags, logging
from flax import nnx

import asga_jax
from asga_jax import data as data_lib
from asga_jax import files, models
from asga_jax.data import augmentation, csv_source, normalisations
from asga_jax.deploy import formats
from asga_jax.xla import lowering

_DATA = flags.DEFINE_string("data", "", "Where weights and images are.")
_OUTPUT = flags.DEFINE_string("output", "runs/imagenet", "Where results go.")
_NETWORKS = flags.DEFINE_multi_string("network", None, "Which; all if none.")
_PARTS = flags.DEFINE_multi_string(
  "part", ["woof500", "mixed227", "nette224"], "Which parts, in float."
)
_CALIBRATION = flags.DEFINE_integer(
  "calibration", 100, "How many images ranges come from."
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
# What is evaluated at 8 bits.
QUANTIZED_PART = "woof500"
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


def predict(name: str, run: formats.Run, images: np.ndarray) -> np.ndarray:
  """Give the classes that a network takes stored images for."""
  return np.concatenate(
    [np.asarray(run(part)).argmax(1) for part in batches(name, images)]
  )


def read_parts(name: str, root: pathlib.Path) -> dict[str, data_lib.Split]:
  """Read the parts of the images that are asked for, as a network has them."""
  if NETWORKS[name].classes != 1000:
    found = data_lib.load("cifar10", data_dir=root / "tfds")
    return {"cifar10": data_lib.Split(found.test_images, found.test_labels)}
  return {
    part: _read_part(root, PARTS[part], NETWORKS[name].crop)
    for part in _PARTS.value
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


def score(predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """Give top-1 and its standard error, in [0, 1]."""
  top1 = float(np.mean(predicted == labels))
  error = math.sqrt(top1 * (1 - top1) / len(labels))
  return {"images": len(labels), "top1": top1, "standard_error": error}


def quantize(name: str, network: nnx.Module, images: np.ndarray) -> nnx.Module:
  """Give every tensor 8 bits, ranges from stored images; no training."""
  first, *others = batches(name, images)
  made = asga_jax.searchable(network, first, bits=(8,), batches=others)
  made.eval()
  return made


def _with_moved_norms(network: nnx.Module) -> nnx.Module:
  """Scale by a millionth more in all batch norms."""
  moved = nnx.clone(network)
  for _, module in nnx.iter_modules(moved):
    if isinstance(module, nnx.BatchNorm) and module.scale is not None:
      module.scale[...] = module.scale[...] * (1 + 1e-6)
  return moved


def at_8_bits(
  name: str,
  network: nnx.Module,
  root: pathlib.Path,
  split: data_lib.Split,
  path: pathlib.Path,
) -> dict[str, Any]:
  """Compare a network at 8 bits, and its file, with itself in float.

  Args:
    name: of `NETWORKS`.
    network: in float.
    root: of the data.
    split: what is evaluated.
    path: where the file goes.

  Returns:
    Shares in [0, 1].
  """
  listed = csv_source.read_list(root / "imagenet" / "calibration.csv")
  # Evenly over the list, which is in the order of the classes.
  chosen = np.linspace(0, len(listed) - 1, _CALIBRATION.value).round()
  seen = csv_source.decode([listed[int(i)].path for i in chosen], size=SIZE)
  made = quantize(name, network, seen)
  asga_jax.export_onnx(made, (SIZE, SIZE, 3), path)
  session = onnxruntime.InferenceSession(path)
  plain, in_jax, moved, in_onnx = (
    predict(name, run, split.images)
    for run in (
      formats.run_in_jax(network),
      formats.run_in_jax(made),
      formats.run_in_jax(_with_moved_norms(made)),
      lambda images: session.run(None, {"image": images})[0],
    )
  )
  return {
    "calibration_images": len(seen),
    "float": score(plain, split.labels),
    "jax": score(in_jax, split.labels),
    "onnx": score(in_onnx, split.labels),
    "as_float": float(np.mean(in_jax == plain)),
    "same": float(np.mean(in_onnx == in_jax)),
    "same_after_a_millionth": float(np.mean(moved == in_jax)),
  }


def format_float(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """Lay out float top-1, a line a network and part."""
  lines = [f"{'float':32}{'images':>8}{'top-1 %':>18}"]
  for name, parts in rows.items():
    lines += [
      f"{f'{name}, {part}':32}{found['images']:>8}{_percent(found):>18}"
      for part, found in parts.items()
    ]
  return "\n".join(lines)


def format_quantized(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """Lay out what 8 bits cost, a line a network."""
  lines = [
    f"{'8 bits':20}{'images':>8}{'float %':>16}{'in JAX %':>10}{'lost':>7}"
    f"{'as float %':>12}{'in onnxruntime %':>18}{'same %':>8}"
    f"{'JAX, 1e-6: same %':>19}"
  ]
  for name, row in rows.items():
    lost = row["float"]["top1"] - row["jax"]["top1"]
    lines.append(
      f"{name:20}{row['jax']['images']:>8}{_percent(row['float']):>16}"
      f"{100 * row['jax']['top1']:>10.2f}{100 * lost:>7.2f}"
      f"{100 * row['as_float']:>12.2f}{100 * row['onnx']['top1']:>18.2f}"
      f"{100 * row['same']:>8.2f}{100 * row['same_after_a_millionth']:>19.2f}"
    )
  return "\n".join(lines)


def _percent(found: Mapping[str, Any]) -> str:
  return f"{100 * found['top1']:.2f} ± {100 * found['standard_error']:.2f}"


def main(_: list[str]) -> None:
  """Measure each network."""
  logging.set_verbosity(logging.INFO)
  unknown = set(_NETWORKS.value or ()) - set(NETWORKS)
  if unknown:
    sys.exit(f"--network={min(unknown)}: expected one of {', '.join(NETWORKS)}")
  wrong = set(_PARTS.value) - set(PARTS)
  if wrong:
    sys.exit(f"--part={min(wrong)}: expected one of {', '.join(PARTS)}")
  try:
    root = find_data(_DATA.value)
  except ValueError as error:
    sys.exit(str(error))
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  names = _NETWORKS.value or list(NETWORKS)
  plain: dict[str, Any] = {}
  quantized: dict[str, Any] = {}
  for name in names:
    given = NETWORKS[name]
    network = load_network(name, root)
    run = formats.run_in_jax(network)
    splits = read_parts(name, root)
    plain[name] = {
      part: score(predict(name, run, split.images), split.labels)
      for part, split in splits.items()
    }
    logging.info("%s: %s", name, plain[name])
    if QUANTIZED_PART in splits:
      quantized[name] = at_8_bits(
        name,
        network,
        root,
        splits[QUANTIZED_PART],
        output / f"{given.model}.onnx",
      )
      logging.info("%s at 8 bits: %s", name, quantized[name])
  text = json.dumps(
    {
      "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
      "onnxruntime": onnxruntime.__version__,
      "float": plain,
      "8 bits": quantized,
    },
    indent=2,
  )
  files.write_text_atomic(output / "imagenet.json", text + "\n")
  print(format_float(plain))
  if quantized:
    print(f"\n{format_quantized(quantized)}")


if __name__ == "__main__":
  app.run(main)
