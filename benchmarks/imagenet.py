"""Published networks on ImageNet's images, in float and at 8 bits.

First top-1 of five networks with weights that others trained, in float. Then,
of those for ImageNet, 8 bits everywhere without any training: ranges come from
images of a calibration set, none of which is evaluated; top-1 in JAX and of the
exported file in a plain session of onnxruntime, and the share of images with
the same prediction. Beside that stands the share of predictions that JAX itself
keeps when all batch norms scale by a little more or less, by the least that
float32 can hold and by eight times that, the least and the most of the four:
values on the border of two codes fall to the other side, and another order of
sums does as much. Prints both tables, and writes them to --output.

--data names a folder with `weights/NAME.safetensors`, `imagenet/val.csv` and
`imagenet/calibration.csv` (lists of images with labels 0 to 999, see
asga_jax/data/csv_source.py) and `tfds/cifar10`; without it that is the folder
which ASGA_DATA_DIR lies in.

python benchmarks/imagenet.py --data=DIR
"""

import json
import math
import pathlib
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnxruntime
import published
import terminal
from absl import app, flags, logging
from flax import nnx

import asga_jax
from asga_jax import data as data_lib
from asga_jax import files
from asga_jax.data import csv_source
from asga_jax.deploy import formats

# --data, --output, --network, --part and --batch_size are there.
flags.adopt_module_key_flags(published)
_CALIBRATION = flags.DEFINE_integer(
  "calibration", 100, "How many images ranges come from."
)
_QUANTIZED = flags.DEFINE_string("quantized", "woof500", "The part at 8 bits.")
# What all norms scale by, in the networks that JAX is set beside.
_MOVES = tuple(x * float(np.finfo(np.float32).eps) for x in (-8, -1, 1, 8))


def predict(name: str, run: formats.Run, images: np.ndarray) -> np.ndarray:
  """Give the classes that a network takes stored images for."""
  return np.concatenate(
    [
      np.asarray(run(part)).argmax(1)
      for part in published.batches(name, images)
    ]
  )


def score(predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """Give top-1 and its standard error, in [0, 1]."""
  top1 = float(np.mean(predicted == labels))
  error = math.sqrt(top1 * (1 - top1) / len(labels))
  return {"images": len(labels), "top1": top1, "standard_error": error}


def quantize(name: str, network: nnx.Module, images: np.ndarray) -> nnx.Module:
  """Give every tensor 8 bits, ranges from stored images; no training."""
  first, *others = published.batches(name, images)
  made = asga_jax.searchable(network, first, bits=(8,), batches=others)
  made.eval()
  return made


def _with_moved_norms(network: nnx.Module, share: float) -> nnx.Module:
  """Scale by this share more in all batch norms."""
  moved = nnx.clone(network)
  for _, module in nnx.iter_modules(moved):
    if isinstance(module, nnx.BatchNorm) and module.scale is not None:
      module.scale[...] = module.scale[...] * (1 + share)
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
    name: of `published.NETWORKS`.
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
  seen = csv_source.decode(
    [listed[int(i)].path for i in chosen], size=published.SIZE
  )
  made = quantize(name, network, seen)
  asga_jax.export_onnx(made, (published.SIZE, published.SIZE, 3), path)
  session = onnxruntime.InferenceSession(path)
  plain, in_jax, in_onnx, *moved = (
    predict(name, run, split.images)
    for run in (
      formats.run_in_jax(network),
      formats.run_in_jax(made),
      lambda images: session.run(None, {"image": images})[0],
      *(formats.run_in_jax(_with_moved_norms(made, x)) for x in _MOVES),
    )
  )
  return {
    "calibration_images": len(seen),
    "float": score(plain, split.labels),
    "jax": score(in_jax, split.labels),
    "onnx": score(in_onnx, split.labels),
    "as_float": float(np.mean(in_jax == plain)),
    "same": float(np.mean(in_onnx == in_jax)),
    "moved": [
      {
        "share": share,
        "same": float(np.mean(predicted == in_jax)),
        **score(predicted, split.labels),
      }
      for share, predicted in zip(_MOVES, moved, strict=True)
    ],
  }


def format_float(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """Lay out float top-1, a line a network and part."""
  table = (
    (f"{name}, {part}", found["images"], _percent(found))
    for name, parts in rows.items()
    for part, found in parts.items()
  )
  return terminal.table(table, ("float", "images", "top-1 %"))


def format_quantized(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """Lay out what 8 bits cost, a line a network."""
  return terminal.table(
    {
      "8 bits": name,
      "images": row["jax"]["images"],
      "float %": _percent(row["float"]),
      "in JAX %": f"{100 * row['jax']['top1']:.2f}",
      "lost": f"{100 * (row['float']['top1'] - row['jax']['top1']):.2f}",
      "as float %": f"{100 * row['as_float']:.2f}",
      "in onnxruntime %": f"{100 * row['onnx']['top1']:.2f}",
      "same %": f"{100 * row['same']:.2f}",
      "JAX, 1e-7: top-1 %": _span(row["moved"], "top1"),
      "JAX, 1e-7: same %": _span(row["moved"], "same"),
    }
    for name, row in rows.items()
  )


def _span(rows: Sequence[Mapping[str, Any]], name: str) -> str:
  values = [100 * row[name] for row in rows]
  return f"{min(values):.1f} to {max(values):.1f}"


def _percent(found: Mapping[str, Any]) -> str:
  return f"{100 * found['top1']:.2f} ± {100 * found['standard_error']:.2f}"


def main(_: list[str]) -> None:
  """Measure each network."""
  logging.set_verbosity(logging.INFO)
  unknown = set(published.NETWORK.value or ()) - set(published.NETWORKS)
  if unknown:
    known = ", ".join(published.NETWORKS)
    sys.exit(f"--network={min(unknown)}: expected one of {known}")
  part = str(_QUANTIZED.value)
  parts = {"part": published.PART.value, "quantized": [part]}
  for flag, asked in parts.items():
    wrong = set(asked) - set(published.PARTS)
    if wrong:
      known = ", ".join(published.PARTS)
      sys.exit(f"--{flag}={min(wrong)}: expected one of {known}")
  try:
    root = published.find_data(published.DATA.value)
  except ValueError as error:
    sys.exit(str(error))
  output = pathlib.Path(published.OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  names = published.NETWORK.value or list(published.NETWORKS)
  plain: dict[str, Any] = {}
  quantized: dict[str, Any] = {}
  for name in names:
    given = published.NETWORKS[name]
    network = published.load_network(name, root)
    run = formats.run_in_jax(network)
    splits = published.read_parts(name, root)
    plain[name] = {
      each: score(predict(name, run, split.images), split.labels)
      for each, split in splits.items()
    }
    logging.info("%s: %s", name, plain[name])
    if part in splits:
      quantized[name] = at_8_bits(
        name,
        network,
        root,
        splits[part],
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
