"""What the cheaper ascents do to the policy that a search finds.

For each seed and each ascent: searches ResNet-8 on the embedded proxy, then
trains the policy found from the same initial weights, on the same batches and
for equally many steps (as benchmarks/policies.py does, whose flags it takes).
Prints test accuracies, the share of searched tensors that are given the bits
of the fresh ascent's policy of the same seed, and the same share between fresh
ascents of different seeds; writes them with a picture to --output.

python benchmarks/ascents.py --output=runs/ascents
"""

import itertools
import json
import pathlib
import platform
import statistics
from typing import Any

import jax
import policies
import terminal
from absl import app, flags, logging
from matplotlib import figure as figure_lib

from asga_jax import data as data_lib
from asga_jax import files
from asga_jax import result as result_lib
from asga_jax.xla import compile_cache

ASCENTS: dict[str, dict[str, Any]] = {
  "fresh": {},
  "previous": {"ascent": "previous"},
  "momentum": {"ascent": "momentum"},
  "fresh, every 4th": {"ascent_every": 4},
}

flags.FLAGS.set_default("output", "runs/ascents")

Bits = dict[str, list[int]]


def one_run(name: str, seed: int, dataset: data_lib.Dataset) -> dict[str, Any]:
  """Search by one ascent and train the policy found."""
  bench = policies.Bench(seed, dataset, **ASCENTS[name])
  found = bench.run_search()
  policy = result_lib.allocate(found)
  return {
    **bench.policy_accuracy(policy),
    "bits": {
      path: [layer.weight_bits, layer.activation_bits]
      for path, layer in policy.layers.items()
      if layer.searched
    },
  }


def agreement(left: Bits, right: Bits) -> float:
  """Give the share (%) of tensors with equal bits in two policies."""
  pairs = [
    pair for path in left for pair in zip(left[path], right[path], strict=True)
  ]
  return 100 * statistics.mean(one == other for one, other in pairs)


def format_table(seeds: list[dict[str, Any]]) -> str:
  """Lay out accuracy and agreement with the fresh ascent.

  In the line of the fresh ascent the agreement is that of different seeds.
  """
  table = []
  for name in ASCENTS:
    if name == "fresh":
      equal = [
        agreement(a[name]["bits"], b[name]["bits"])
        for a, b in itertools.combinations(seeds, 2)
      ]
    else:
      equal = [
        agreement(rows["fresh"]["bits"], rows[name]["bits"]) for rows in seeds
      ]
    shares = f"{min(equal):.0f}-{max(equal):.0f}" if equal else "-"
    found = [rows[name]["accuracy"] for rows in seeds]
    line = {"ascent": name, **terminal.spread("test accuracy %", found)}
    table.append(line | {"bits as fresh %": shares})
  return terminal.table(table)


def draw(seeds: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Draw every run as a point, by ascent."""
  figure = figure_lib.Figure(figsize=(7, 2.8), layout="constrained")
  axes = figure.add_subplot()
  names = list(reversed(ASCENTS))
  for seed, rows in enumerate(seeds):
    axes.plot(
      [rows[name]["accuracy"] for name in names],
      range(len(names)),
      "o",
      color=f"C{seed}",
      label=f"seed {flags.FLAGS.first_seed + seed}",
      alpha=0.8,
    )
  axes.set_yticks(range(len(names)), names)
  axes.set_xlabel("test accuracy of the policy after training alike, %")
  axes.set_title("ResNet-8 on fashion_mnist_8k: ascent of the search")
  axes.grid(axis="x", alpha=0.3)
  axes.legend(loc="best", fontsize="small")
  figure.savefig(path, dpi=130)


def main(_: list[str]) -> None:
  """Run all seeds and write the results."""
  logging.set_verbosity(logging.INFO)
  compile_cache.enable()
  output = pathlib.Path(flags.FLAGS.output)
  output.mkdir(parents=True, exist_ok=True)
  dataset = data_lib.load("fashion_mnist_8k")
  seeds: list[dict[str, Any]] = []
  first = flags.FLAGS.first_seed
  for seed in range(first, first + flags.FLAGS.seeds):
    rows = {}
    for name in ASCENTS:
      rows[name] = one_run(name, seed, dataset)
      logging.info("seed %d, %s: %s", seed, name, rows[name])
    seeds.append(rows)
    text = json.dumps(
      {
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "first_seed": first,
        "seeds": seeds,
      },
      indent=2,
    )
    files.write_text_atomic(output / "ascents.json", text + "\n")
  draw(seeds, output / "ascents.png")
  print(format_table(seeds))


if __name__ == "__main__":
  app.run(main)
