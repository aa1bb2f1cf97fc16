"""How long does the exact choice of bits take?

Draws scores for ResNet-50 (v1.5 at 224x224, 1000 classes; six candidates for
every weight and every input, ends at 8 bits) and meets one, two and three
budgets at once: BOPs, size, and a latency table drawn at random. Scores are
`normal`; `rising` with the bits, as losses of quantization are; or `falling`,
as logits are that a penalty has pushed down, where the share of the budget to
be used decides. In a tied network the layers that read the same tensor share
the bits of their input. Prints the median and the largest time over the seeds.

python benchmarks/allocation.py --seeds=10
"""

import itertools
import statistics
import time

import numpy as np
import terminal
from absl import app, flags, logging
from flax import nnx

import asga_jax
from asga_jax import models
from asga_jax import policy as policy_lib
from asga_jax.allocation import choose as allocation
from asga_jax.allocation import frontier
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import macs

_SEEDS = flags.DEFINE_integer("seeds", 10, "How many seeds, from 0.")
_POINTS = flags.DEFINE_integer("points", 40, "Of each Pareto curve.")

BITS = (2, 3, 4, 5, 6, 8)
BUDGETS = (
  "bops=4bit",
  "bops=4bit,size=4bit",
  "bops=4bit,size=4bit,latency=4bit",
)
KINDS = ("normal", "rising", "falling")


def resnet50() -> costs_lib.NetworkStats:
  """Count the layers of the deployed network of configs/resnet50.py."""
  construct = models.constructor("resnet50")
  model = nnx.eval_shape(
    lambda: construct(1000, stem="imagenet", rngs=nnx.Rngs(0))
  )
  return macs.network_stats(model, (224, 224, 3))


def make_choices(
  network: costs_lib.NetworkStats, *, tied: bool
) -> dict[str, policy_lib.LayerChoice]:
  """Give every layer but the ends six candidates of each."""
  choices = {}
  for path in network.paths:
    block, _, name = path.rpartition("/")
    if path in (network.paths[0], network.paths[-1]):
      choices[path] = policy_lib.LayerChoice((8,), (8,), searched=False)
    else:
      shared = tied and name in ("conv1", "shortcut")
      choices[path] = policy_lib.LayerChoice(
        BITS,
        BITS,
        searched=True,
        activation_group=f"input of {block}" if shared else "",
      )
  return choices


def draw_scores(
  choices: dict[str, policy_lib.LayerChoice],
  kind: str,
  rng: np.random.Generator,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Draw scores of weights and of inputs."""
  scores: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
  for path, choice in choices.items():
    keys = choice.weight_key(path), choice.activation_key(path)
    bits = choice.weight_bits, choice.activation_bits
    for of_kind, key, candidates in zip(scores, keys, bits, strict=True):
      drawn = rng.normal(size=len(candidates))
      if kind != "normal":
        # Few layers matter much.
        drawn = np.sort(np.abs(drawn)) * rng.lognormal()
      of_kind.setdefault(key, -drawn if kind == "falling" else drawn)
  return scores


def draw_costs(
  network: costs_lib.NetworkStats, rng: np.random.Generator
) -> tuple[costs_lib.Cost, ...]:
  """List BOPs, size and a latency of 30 % around what MACs and bits say."""
  table = {
    (layer.path, weight, inputs): float(
      0.01 + layer.macs * (weight + inputs) / 5e9 * rng.uniform(0.7, 1.3)
    )
    for layer in network.layers
    for weight in BITS
    for inputs in BITS
  }
  return costs_lib.BOPS, costs_lib.SIZE, asga_jax.latency_cost(table)


def time_one(
  network: costs_lib.NetworkStats,
  kind: str,
  form: str,
  seed: int,
  *,
  tied: bool,
) -> tuple[float, float]:
  """Allocate once; give the seconds of the clock and of the processor."""
  rng = np.random.default_rng(seed)
  choices = make_choices(network, tied=tied)
  scores = draw_scores(choices, kind, rng)
  costs = draw_costs(network, rng)
  budget = budget_lib.parse_budget(form)
  limits = budget_lib.resolve(budget, network, choices, costs)
  wall, processor = time.perf_counter(), time.process_time()
  allocation.allocate_bits(network, choices, *scores, costs, limits)
  return time.perf_counter() - wall, time.process_time() - processor


def time_curve(
  network: costs_lib.NetworkStats, kind: str, seed: int
) -> tuple[float, float]:
  """Find a curve of BOPs once; give the same."""
  rng = np.random.default_rng(seed)
  choices = make_choices(network, tied=True)
  scores = draw_scores(choices, kind, rng)
  wall, processor = time.perf_counter(), time.process_time()
  frontier.find_points(
    network,
    choices,
    *scores,
    [costs_lib.BOPS],
    "bops",
    {},
    points=_POINTS.value,
  )
  return time.perf_counter() - wall, time.process_time() - processor


def make_row(name: str, times: list[tuple[float, float]]) -> tuple[str, ...]:
  """Lay out the median and the largest of both times, and log them."""
  cells = [
    f"{figure:.2f}"
    for seconds in zip(*times, strict=True)
    for figure in (statistics.median(seconds), max(seconds))
  ]
  logging.info("%s: %s", name, cells)
  return name, *cells


def main(_: list[str]) -> None:
  """Time every kind of scores, with and without ties."""
  logging.set_verbosity(logging.INFO)
  network = resnet50()
  print(
    f"ResNet-50, {len(network.layers)} layers, {len(BITS)}x{len(BITS)} choices"
    f" a layer, {_SEEDS.value} seeds; seconds"
  )
  seeds = range(_SEEDS.value)
  rows = []
  for tied, kind, form in itertools.product((False, True), KINDS, BUDGETS):
    times = [time_one(network, kind, form, s, tied=tied) for s in seeds]
    ties = "tied" if tied else "free"
    rows.append(make_row(f"{ties}, {kind}, {form}", times))
  for kind in KINDS[:2]:
    times = [time_curve(network, kind, s) for s in seeds]
    name = f"tied, {kind}, curve of {_POINTS.value} points"
    rows.append(make_row(name, times))
  headers = ("", "median", "largest", "median CPU", "largest CPU")
  print(terminal.table(rows, headers))


if __name__ == "__main__":
  app.run(main)
