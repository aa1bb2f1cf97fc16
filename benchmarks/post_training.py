"""Policies without training against uniform bits, on published networks.

For each network and budget: a policy by the divergence of one tensor at a time,
and uniform bits within the budget, both rounded (`round_weights`) and corrected
(`correct_bias`) on the same calibration images, none of which is evaluated.
Top-1, agreement with the float network and divergence from it, on parts of
ImageNet's validation images and on all of them, with paired differences and
95 % intervals. Every network and budget is kept in --output as it is measured,
and a run goes on from there.

--data is what benchmarks/imagenet.py takes.

python benchmarks/post_training.py --data=DIR
"""

import json
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

import comparison
import jax
import numpy as np
import published
from absl import app, flags, logging
from flax import nnx

import asga_jax
from asga_jax import files
from asga_jax import result as result_lib
from asga_jax.data import csv_source
from asga_jax.deploy import formats
from asga_jax.scores import post_training

# --data, --output, --network, --part and --batch_size are there.
flags.adopt_module_key_flags(published)
_BUDGETS = flags.DEFINE_multi_string(
  "budget", ["bops=4bit", "bops=5bit"], "Budgets of all policies."
)
_IMAGES = flags.DEFINE_integer("images", 480, "For calibration, unlabelled.")
_SCORED = flags.DEFINE_integer("scored", 32, "Of these, for scores; a batch.")
NAMES = ("EfficientNet-Lite0", "MobileNetV2", "ResNet-18")


def read_batches(name: str, root: pathlib.Path) -> list[np.ndarray]:
  """Read calibration images, each batch over the whole list of classes."""
  listed = csv_source.read_list(root / "imagenet" / "calibration.csv")
  count = _IMAGES.value // _SCORED.value
  chosen = np.linspace(0, len(listed) - 1, count * _SCORED.value).round()
  images = csv_source.decode(
    [listed[int(i)].path for i in chosen], size=published.SIZE
  )
  prepare = published.preparation(name)
  return [prepare(images[start::count]) for start in range(count)]


def measure(
  name: str, root: pathlib.Path, output: pathlib.Path
) -> dict[str, Any]:
  """Measure a network at every budget.

  Args:
    name: of `published.NETWORKS`.
    root: of the data.
    output: where cells and scores are kept.

  Returns:
    Budget -> part -> figures.
  """
  # What the figures depend on is part of a file's name.
  images = f"{_SCORED.value}_of_{_IMAGES.value}"
  stem = f"{published.NETWORKS[name].model}_{images}"
  parts = "_".join(published.PART.value)
  cells = {
    budget: output / f"{stem}_{parts}_{budget.replace('=', '_')}.json"
    for budget in _BUDGETS.value
  }
  missing = {b: path for b, path in cells.items() if not path.exists()}
  if missing:
    network = published.load_network(name, root)
    network.eval()
    batches = read_batches(name, root)
    splits = published.read_parts(name, root)
    plain = logits(name, network, splits)
    made = asga_jax.searchable(network, batches[0], batches=batches[1:])
    result = asga_jax.measure_scores(
      made,
      batches[:1],
      budget=_BUDGETS.value[0],
      rounded_on=batches,
      cache=output / f"{stem}_scores.json",
    )
    for budget, path in missing.items():
      found = {}
      for kind, policy in (
        ("policy", asga_jax.allocate(result, budget=budget)),
        ("uniform", result_lib.uniform_policy(result, budget)),
      ):
        fixed = post_training.apply_policy(
          made, policy, batches, reference=network
        )
        found[kind] = logits(name, fixed, splits)
      labels = {part: split.labels for part, split in splits.items()}
      cell = comparison.compare(
        labels, plain, found["uniform"], found["policy"]
      )
      files.write_text_atomic(path, json.dumps(cell, indent=2) + "\n")
      logging.info("%s at %s: %s", name, budget, cell)
  return {b: json.loads(path.read_text()) for b, path in cells.items()}


def logits(
  name: str, network: nnx.Module, splits: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Run a network on every part."""
  run = formats.run_in_jax(network)
  return {
    part: np.concatenate(
      [np.asarray(run(x)) for x in published.batches(name, split.images)]
    )
    for part, split in splits.items()
  }


def main(_: list[str]) -> None:
  """Measure each network."""
  logging.set_verbosity(logging.INFO)
  names = published.NETWORK.value or NAMES
  if unknown := set(names) - set(NAMES):
    sys.exit(f"--network={min(unknown)}: expected one of {', '.join(NAMES)}")
  if not 0 < _SCORED.value <= _IMAGES.value or _IMAGES.value % _SCORED.value:
    sys.exit(
      f"--images={_IMAGES.value} in batches of --scored={_SCORED.value}:"
      " expected a multiple of at least one"
    )
  try:
    root = published.find_data(published.DATA.value)
  except ValueError as error:
    sys.exit(str(error))
  output = pathlib.Path(published.OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  rows = {name: measure(name, root, output) for name in names}
  print(f"{platform.machine()}, {jax.devices()[0].device_kind}")
  print(comparison.format_rows(rows))


if __name__ == "__main__":
  app.run(main)
