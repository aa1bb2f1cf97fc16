"""Does the search find better policies than uniform or random bits?

For each seed: searches ResNet-8 on the embedded proxy; then trains, from the
same initial weights, on the same batches and for equally many steps, the
policy found (by either score), uniform bits at the same BOPs, and random
policies at the same BOPs; and the float network. Prints test accuracies, and
writes them with a picture to --output.

python benchmarks/policies.py --output=runs/policies
"""

import json
import pathlib
import platform
import statistics
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import terminal
from absl import app, flags, logging
from matplotlib import figure as figure_lib

from asga_jax import conversion, evaluate, files, finetune, search
from asga_jax import data as data_lib
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.data import batches as batches_lib
from asga_jax.quantization import batch_norm
from asga_jax.runs import build, search_start
from asga_jax.runs import config as config_lib
from asga_jax.runs import search as search_run
from asga_jax.training import loop
from asga_jax.xla import compile_cache

_OUTPUT = flags.DEFINE_string("output", "runs/policies", "Where results go.")
_BITS = flags.DEFINE_integer("bits", 3, "The budget: what these bits cost.")
# The first-order score became the default by what seeds 0 to 2 showed.
_FIRST_SEED = flags.DEFINE_integer("first_seed", 3, "The first seed.")
_SEEDS = flags.DEFINE_integer("seeds", 6, "How many seeds.")
_RANDOM = flags.DEFINE_integer("random", 1, "Random policies a seed.")
_SEARCH_STEPS = flags.DEFINE_integer("search_steps", 200, "Of each search.")
_TRAIN_STEPS = flags.DEFINE_integer("train_steps", 300, "Of each training.")

Bits = Mapping[str, tuple[int, int]]


def make_config(seed: int, **sharpness: Any) -> Any:
  """Make the configuration of ResNet-8 on the embedded proxy."""
  config = config_lib.default_config()
  config.model = "resnet8"
  config.deployed.update(image_size=32, num_classes=10, stem="small")
  config.budget = f"bops={_BITS.value}bit"
  config.search.update(steps=_SEARCH_STEPS.value, seed=seed)
  config.search.sharpness.update(sharpness)
  return config


class Bench:
  """One seed: its network, its data and its trainings."""

  def __init__(self, seed: int, dataset: data_lib.Dataset, **sharpness: Any):
    """Build the search and the network that every training starts from."""
    self.config = make_config(seed, **sharpness)
    self.dataset = dataset
    self.splits = data_lib.split_proxy(dataset, heldout_fraction=0.0, seed=seed)
    self.search = search_start.set_ranges(
      self.config,
      search_run.build_search(self.config, dataset.info),
      dataset,
      self.splits,
    )
    self.start = search.trained_model(self.search, self.search.state)
    self.plain = build.make_prepare(self.config, dataset, train=False)

  def batches(self, steps: int) -> Any:
    """Yield training batches."""
    for step in range(steps):
      yield batches_lib.batch_at(
        self.splits.train,
        step,
        batch_size=self.config.batch_size,
        seed=self.config.search.seed,
      )

  def run_search(self) -> result_lib.SearchResult:
    """Search, and gives the result."""
    steps = self.config.search.steps
    state = loop.run(
      self.search.step,
      self.search.state,
      search_run.make_batches(
        self.config, self.dataset, self.splits, 0, self.search.mesh
      ),
      steps,
      self.search.mesh,
    )
    return search.finish_search(self.search, state, model_name="resnet8")

  def accuracy(self, model: Any) -> float:
    """Train a network alike and give its test accuracy in per cent."""
    trained = finetune.train_policy(
      model,
      self.batches(_TRAIN_STEPS.value),
      settings=finetune.FinetuneSettings(
        steps=_TRAIN_STEPS.value, seed=self.config.search.seed
      ),
      prepare=build.make_prepare(self.config, self.dataset, train=True),
    )
    inputs = (
      self.plain(jax.random.key(0), jax.tree.map(jnp.asarray, batch))["image"]
      for batch in self.batches(self.config.batch_norm_batches)
    )
    batch_norm.reestimate_batch_norm(trained, inputs)
    return 100 * evaluate.accuracy(trained, self.splits.report, self.plain)

  def policy_accuracy(self, policy: policy_lib.Policy) -> dict[str, float]:
    """Train at a policy; gives accuracy (%) and share of the budget (%)."""
    return {
      "accuracy": self.accuracy(conversion.with_policy(self.start, policy)),
      "budget_used": 100 * float(policy.cost["budget_used"]),
    }


def uniform_policy(found: result_lib.SearchResult) -> policy_lib.Policy:
  """Choose the bits nearest to uniform: exactly uniform if it fits."""

  def scores(candidates: tuple[int, ...]) -> np.ndarray:
    return -np.abs(np.array(candidates, float) - _BITS.value)

  return _allocate(found, scores)


def random_policy(
  found: result_lib.SearchResult, generator: np.random.Generator
) -> policy_lib.Policy:
  """Choose the best policy by scores drawn at random."""
  return _allocate(
    found, lambda candidates: generator.normal(size=len(candidates))
  )


def _allocate(found, scores) -> policy_lib.Policy:
  by_group = {}
  for choice in found.space.choices.values():
    by_group[choice.weight_group] = scores(choice.weight_bits)
    by_group[choice.activation_group] = scores(choice.activation_bits)
  replaced = result_lib.dataclasses.replace(
    found, scores={"log_prob": by_group}
  )
  return result_lib.allocate(replaced, score="log_prob")


def one_seed(seed: int, dataset: data_lib.Dataset) -> dict[str, Any]:
  """Run all trainings of one seed."""
  bench = Bench(seed, dataset)
  found = bench.run_search()
  generator = np.random.default_rng(seed)
  policies = {
    "searched (log p)": [result_lib.allocate(found, score="log_prob")],
    "searched (first order)": [result_lib.allocate(found, score="first_order")],
    "uniform": [uniform_policy(found)],
    "random": [random_policy(found, generator) for _ in range(_RANDOM.value)],
  }
  rows: dict[str, Any] = {}
  for name, members in policies.items():
    rows[name] = [bench.policy_accuracy(policy) for policy in members]
    logging.info("seed %d, %s: %s", seed, name, rows[name])
  network = build.make_network(bench.config, dataset.num_classes, seed=seed)
  rows["float"] = [{"accuracy": bench.accuracy(network), "budget_used": None}]
  rows["bits found"] = {
    path: [layer.weight_bits, layer.activation_bits]
    for path, layer in policies["searched (log p)"][0].layers.items()
  }
  return rows


METHODS = (
  "float",
  "searched (log p)",
  "searched (first order)",
  "uniform",
  "random",
)


def format_table(seeds: list[dict[str, Any]]) -> str:
  """Lay out mean, spread and share of the budget for each method."""
  table, gains = [], []
  for name in METHODS:
    runs = [run for rows in seeds for run in rows[name]]
    used = [run["budget_used"] for run in runs if run["budget_used"]]
    shares = f"{min(used):.1f}-{max(used):.1f}" if used else "-"
    found = [run["accuracy"] for run in runs]
    spread = terminal.spread("test accuracy %", found)
    table.append({"": name, **spread, "budget %": shares})
  title = "first order above others, seed by seed"
  for name in ("searched (log p)", "uniform", "random"):
    above = [
      rows["searched (first order)"][0]["accuracy"]
      - statistics.mean(run["accuracy"] for run in rows[name])
      for rows in seeds
    ]
    won = f"{sum(x > 0 for x in above)} of {len(above)}"
    spread = terminal.spread("points", above, "+")
    gains.append({title: name, **spread, "above": won})
  return f"{terminal.table(table)}\n{terminal.table(gains)}"


def draw(seeds: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Draw every run as a point, by method."""
  figure = figure_lib.Figure(figsize=(7, 3.2), layout="constrained")
  axes = figure.add_subplot()
  for row, name in enumerate(reversed(METHODS)):
    for seed, rows in enumerate(seeds):
      found = [run["accuracy"] for run in rows[name]]
      axes.scatter(
        found,
        [row + 0.12 * (seed - (len(seeds) - 1) / 2)] * len(found),
        color=f"C{seed}",
        label=f"seed {_FIRST_SEED.value + seed}" if not row else None,
      )
  axes.set_yticks(range(len(METHODS)), list(reversed(METHODS)))
  axes.set_xlabel("test accuracy after training alike, %")
  axes.set_title(f"ResNet-8 on fashion_mnist_8k, {_BITS.value} bits")
  axes.grid(axis="x", alpha=0.3)
  axes.legend(loc="best", fontsize="small")
  figure.savefig(path, dpi=130)


def main(_: list[str]) -> None:
  """Run all seeds and write the results."""
  logging.set_verbosity(logging.INFO)
  compile_cache.enable()
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  dataset = data_lib.load("fashion_mnist_8k")
  seeds = []
  for seed in range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value):
    seeds.append(one_seed(seed, dataset))
    text = json.dumps(
      {
        "bits": _BITS.value,
        "search_steps": _SEARCH_STEPS.value,
        "train_steps": _TRAIN_STEPS.value,
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "first_seed": _FIRST_SEED.value,
        "seeds": seeds,
      },
      indent=2,
    )
    files.write_text_atomic(output / "policies.json", text + "\n")
  draw(seeds, output / "policies.png")
  print(format_table(seeds))


if __name__ == "__main__":
  app.run(main)
