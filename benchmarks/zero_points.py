"""What a zero point gains for inputs that may be negative, without training.

Weights have 8 bits and all inputs --bits, from ranges of 64 training images,
once by symmetric grids ('lsq') and once with zero points ('lsq_plus'). Prints,
of the inputs that are not proven to be non-negative, the mean ratio of signal
to rounding error, and the network's top-1. ViT-Ti is trained on the embedded
images, in a work directory in --output that is read if it is there;
EfficientNet-Lite0 and MobileNetV2 come from published weights, and are left out
without --weights and --imagenet.

python benchmarks/zero_points.py --output=runs/zero_points
"""

import json
import pathlib
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import terminal
from absl import app, flags, logging
from flax import nnx

import asga_jax
from asga_jax import data as data_lib
from asga_jax import files, models
from asga_jax.data import csv_source, normalisations
from asga_jax.deploy import formats
from asga_jax.network import examples
from asga_jax.quantization import calibration, layers
from asga_jax.runs import build, read, variants
from asga_jax.runs import config as config_lib
from asga_jax.runs import finetune as finetune_run

_OUTPUT = flags.DEFINE_string("output", "runs/zero_points", "Results go here.")
_BITS = flags.DEFINE_integer("bits", 4, "Of all inputs.")
_STEPS = flags.DEFINE_integer("steps", 300, "Of the training of ViT-Ti.")
_WEIGHTS = flags.DEFINE_string(
  "weights", "", "Folder of efficientnet_lite0*.safetensors and others."
)
_IMAGENET = flags.DEFINE_string(
  "imagenet", "", "Folder of val.csv and calibration.csv."
)
_PART = flags.DEFINE_string("part", "val/woof320", "Of the images in val.csv.")

_CALIBRATION = 64
# Model -> beginning of the file's name, map of names, normalisation.
_PUBLISHED = {
  "efficientnet_lite0": (
    "efficientnet_lite0",
    "efficientnet_pytorch",
    "efficientnet_lite",
  ),
  "mobilenet_v2": ("mobilenetv2", "torchvision", "tensorflow_flipped"),
}


class Case(NamedTuple):
  """A trained float network and its images."""

  model: nnx.Module
  calibration: np.ndarray
  images: np.ndarray
  labels: np.ndarray


def vit() -> Case:
  """Train ViT-Ti in float, or read it."""
  config = config_lib.default_config()
  config.model = "vit_ti"
  variants.apply_variant(config, "small")
  config.batch_size = 32
  # A transformer without warm-up learns nothing at 0.1.
  config.finetune.update(steps=_STEPS.value, learning_rate=0.01)
  folder = pathlib.Path(_OUTPUT.value) / "vit_ti"
  finetune_run.run_finetuning(config, folder)
  dataset = data_lib.load(config.data.name)
  prepare = build.make_prepare(config, dataset, train=False)

  def prepared(images: np.ndarray) -> np.ndarray:
    batch = {"image": images, "label": np.zeros(len(images), np.int32)}
    return np.asarray(prepare(jax.random.key(0), batch)["image"])

  return Case(
    read.read_trained(folder).model,
    prepared(dataset.train_images[:_CALIBRATION]),
    prepared(dataset.test_images),
    dataset.test_labels,
  )


def published(name: str) -> Case:
  """Read a network with published weights and ImageNet's images."""
  beginning, names, normalisation = _PUBLISHED[name]
  path = next(pathlib.Path(_WEIGHTS.value).glob(f"{beginning}*.safetensors"))
  model = asga_jax.load_weights(
    models.constructor(name)(1000, rngs=nnx.Rngs(0)), path, name_map=names
  )
  found = normalisations.find(normalisation)
  assert found is not None

  def prepared(images: np.ndarray) -> np.ndarray:
    turned = images[:, ::-1, ::-1] if found.flipped else images
    made = (turned / 255 - np.array(found.mean)) / np.array(found.std)
    return made.astype(np.float32)

  folder = pathlib.Path(_IMAGENET.value)
  seen = csv_source.read_list(folder / "calibration.csv")[:_CALIBRATION]
  crop = 0.875 if _PART.value.endswith("woof320") else 1.0
  split = csv_source.read_images(
    folder / "val.csv", crop=crop, within=_PART.value
  )
  return Case(
    model,
    prepared(csv_source.decode([row.path for row in seen])),
    prepared(split.images),
    split.labels,
  )


def measure(case: Case) -> dict[str, Any]:
  """Compare the two kinds of grids on one network.

  Args:
    case: the network.

  Returns:
    Shares in [0, 1], and ratios of signal to error in dB.
  """
  example = examples.as_example(case.calibration)
  seen = calibration.gather(case.model, example).inputs
  rule = asga_jax.Rule(".*", weight_bits=8, activation_bits=_BITS.value)
  right, found = {}, {}
  right["float"] = _right(case, case.model)
  for name in ("lsq", "lsq_plus"):
    model = asga_jax.searchable(
      case.model, case.calibration, rules=[rule], activation_quantizer=name
    )
    right[name] = _right(case, model)
    found[name] = {
      path: _decibel(seen[path], product.activation)
      for path, product in layers.quantized_layers(model).items()
      if seen[path].signed
    }
  gains = [
    found["lsq_plus"][path] - found["lsq"][path] for path in found["lsq"]
  ]
  paired = right["lsq_plus"].astype(float) - right["lsq"]
  return {
    "images": len(case.images),
    "inputs": len(gains),
    **{f"{name}_db": np.mean(list(found[name].values())) for name in found},
    "most_db": max(gains),
    **{f"{name}_top1": right[name].mean() for name in right},
    "gain": paired.mean(),
    "gain_error": paired.std() / np.sqrt(len(paired)),
  }


def _decibel(seen: Any, choice: Any) -> float:
  lower, upper = np.array(choice.grids()[:2])[:, 0]
  step = np.asarray(choice.steps(), np.float64)
  error = seen.errors(step, int(upper - lower))[0, int(-lower)]
  return float(10 * np.log10(seen.second_moment * seen.size / error))


def _right(case: Case, model: nnx.Module) -> np.ndarray:
  run = formats.run_in_jax(model)
  parts = [
    run(case.images[i : i + 50]).argmax(axis=1)
    for i in range(0, len(case.images), 50)
  ]
  return np.concatenate(parts) == case.labels  # type: ignore[no-any-return]


def format_table(rows: dict[str, dict[str, Any]]) -> str:
  """Lay out the figures, a line a network."""
  return terminal.table(
    {
      "": name,
      "inputs": row["inputs"],
      "symmetric dB": f"{row['lsq_db']:.2f}",
      "zero point dB": f"{row['lsq_plus_db']:.2f}",
      "most": f"{row['most_db']:.1f}",
      "float %": f"{100 * row['float_top1']:.1f}",
      "symmetric %": f"{100 * row['lsq_top1']:.1f}",
      "zero point %": f"{100 * row['lsq_plus_top1']:.1f}",
      "gain (s.e.)": f"{100 * row['gain']:.1f} ({100 * row['gain_error']:.1f})",
      "images": row["images"],
    }
    for name, row in rows.items()
  )


def main(_: list[str]) -> None:
  """Measure each network."""
  logging.set_verbosity(logging.WARNING)
  cases: dict[str, Callable[[], Case]] = {"vit_ti": vit}
  if _WEIGHTS.value and _IMAGENET.value:
    for name in _PUBLISHED:
      cases[name] = lambda name=name: published(name)  # type: ignore[misc]
  rows = {name: measure(make()) for name, make in cases.items()}
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  text = {
    "bits": _BITS.value,
    "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
    "networks": rows,
  }
  files.write_text_atomic(
    output / "zero_points.json",
    json.dumps(text, indent=2, default=float) + "\n",
  )
  print(format_table(rows))


if __name__ == "__main__":
  app.run(main)
