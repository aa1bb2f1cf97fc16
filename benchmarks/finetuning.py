"""What fewer bits cost a trained network, by policy, on CIFAR-10.

For each seed: trains ResNet-20 in float, searches a policy from its weights,
and goes on from these weights for equally many steps in float, at 8 bits, at
uniform bits, and at the policy found, within the cost of the uniform one.
Prints top-1 on the whole test split, and writes it with a picture to --output.
Every run has a work directory there: what has ended is read, not repeated.

python benchmarks/finetuning.py --output=runs/finetuning
"""

import json
import pathlib
import platform
from typing import Any

import jax
import terminal
from absl import app, flags, logging
from matplotlib import figure as figure_lib

from asga_jax import files
from asga_jax.runs import config as config_lib
from asga_jax.runs import finetune as finetune_run
from asga_jax.runs import search as search_run
from asga_jax.runs import variants

_OUTPUT = flags.DEFINE_string("output", "runs/finetuning", "Where results go.")
_BITS = flags.DEFINE_integer("bits", 4, "The budget: what these bits cost.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds, from 0.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Of every training.")
_FLOAT = flags.DEFINE_integer("float_steps", 1000, "Of the float network.")
_STEPS = flags.DEFINE_integer("steps", 300, "Of every fine-tuning.")
_SEARCH = flags.DEFINE_integer("search_steps", 150, "Of each search.")

# Of a training from random weights, and of all that starts from trained ones.
_RATE, _SMALL_RATE = 0.1, 0.02


def base_config(seed: int) -> Any:
  """Make the configuration that all runs of a seed share."""
  config = config_lib.default_config()
  config.model = "resnet20"
  variants.apply_variant(config, "cifar10,small")
  config.batch_size = _BATCH.value
  config.budget = f"bops={_BITS.value}bit"
  config.search.update(
    steps=_SEARCH.value, seed=seed, learning_rate=_SMALL_RATE
  )
  config.finetune.update(
    steps=_STEPS.value, seed=seed, learning_rate=_SMALL_RATE
  )
  return config


def one_seed(seed: int, folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Run all trainings of one seed.

  Args:
    seed: of weights, batches and augmentation.
    folder: holds a work directory a run.

  Returns:
    By the name of a run, what its summary says; of the search its policy too.
  """
  config = base_config(seed)
  config.finetune.update(steps=_FLOAT.value, learning_rate=_RATE)
  found = {
    "float": finetune_run.run_finetuning(config, folder / "float").summary
  }
  weights = str(folder / "float" / "weights.safetensors")
  config = base_config(seed)
  config.weights.path = weights
  searched = search_run.run_search(config, folder / "search")
  found["search"] = {
    **searched.summary,
    "bits": {
      path: [layer.weight_bits, layer.activation_bits]
      for path, layer in searched.policy.layers.items()
    },
  }
  for name, policy in policies(folder).items():
    config = base_config(seed)
    config.finetune.policy = policy
    config.finetune.start_from = str(folder / "float")
    place = folder / name.replace(" ", "_")
    found[name] = finetune_run.run_finetuning(config, place).summary
    logging.info("seed %d, %s: %s", seed, name, found[name]["top1"])
  return found


def policies(folder: pathlib.Path) -> dict[str, str]:
  """Name the trainings that start from float weights, with their policies."""
  return {
    "float, trained on": "float",
    "8 bits": "8bit",
    f"uniform {_BITS.value} bits": f"{_BITS.value}bit",
    "searched": str(folder / "search" / "policy.json"),
  }


def row_names() -> list[str]:
  """List what is compared, in the order of the table."""
  return ["float", *policies(pathlib.Path())]


def format_table(seeds: list[dict[str, dict[str, Any]]]) -> str:
  """Lay out mean and spread of top-1 by policy."""
  table = []
  for name in row_names():
    found = [100 * rows[name]["top1"] for rows in seeds]
    line = {"": name, **terminal.spread("top-1 %", found)}
    line["by seed"] = "  ".join(f"{value:.2f}" for value in found)
    table.append(line)
  return terminal.table(table)


def draw(
  seeds: list[dict[str, dict[str, Any]]], path: pathlib.Path, title: str
) -> None:
  """Draw top-1 of every run, a line a seed, to a picture."""
  figure = figure_lib.Figure(figsize=(7, 3.2), layout="constrained")
  axes = figure.add_subplot()
  names = row_names()[::-1]
  for seed, rows in enumerate(seeds):
    axes.plot(
      [100 * rows[name]["top1"] for name in names],
      range(len(names)),
      "o-",
      linewidth=0.8,
      alpha=0.8,
      label=f"seed {seed}",
    )
  axes.set_yticks(range(len(names)), names)
  axes.set_xlabel("top-1 on the test split, %")
  axes.set_title(title)
  axes.grid(axis="x", alpha=0.3)
  axes.legend(loc="best", fontsize="small")
  figure.savefig(path, dpi=130)


def main(_: list[str]) -> None:
  """Run all seeds and write the results."""
  logging.set_verbosity(logging.INFO)
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  seeds = []
  for seed in range(_SEEDS.value):
    seeds.append(one_seed(seed, output / f"seed{seed}"))
    text = json.dumps(
      {
        "bits": _BITS.value,
        "batch_size": _BATCH.value,
        "float_steps": _FLOAT.value,
        "steps": _STEPS.value,
        "search_steps": _SEARCH.value,
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "seeds": seeds,
      },
      indent=2,
    )
    files.write_text_atomic(output / "finetuning.json", text + "\n")
    draw(
      seeds,
      output / "finetuning.png",
      f"ResNet-20 on CIFAR-10 at the cost of {_BITS.value} bits",
    )
    print(format_table(seeds))


if __name__ == "__main__":
  app.run(main)
