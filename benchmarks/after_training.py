"""Does a searched policy beat uniform and random bits after a training?

ResNet-20 from its published weights on CIFAR-10: for each seed policies of one
cost, each trained alike (same weights, images, order of batches, schedule), or
corrected without a training; top-1 on the whole test split, paired over seeds,
and without a training on the first 5,000 training images too, by which to
choose.
Methods: `uniform`, `random` (scores drawn anew for each seed), `default` (a
search as configs/resnet20.py has it), `prior` (measured divergences, no
search), `search_N` (log p after N steps), `both_N` (the same from the prior),
`frozen_N`, `frozenboth_N` (the same with frozen batch norm and slower rates);
`sampled_N` (steps at one candidate a tensor, drawn by the probabilities); each
of these also as `search_N:first_order` or `:noise_power`, and as `sampled_N:kl`
by divergences that are measured of the searched network; `drawn_N:fitted`
(steps at rates that stay, then scores fitted to the losses of whole policies).
What has been computed is kept in --output, a file each, and not repeated.

python benchmarks/after_training.py --weights=cifar10_resnet20.safetensors
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import seeds
from absl import app, flags, logging

import asga_jax
from asga_jax import data as data_lib
from asga_jax import evaluate, files
from asga_jax import result as result_lib
from asga_jax.allocation import space as search_space
from asga_jax.data import batches as batches_lib
from asga_jax.quantization import batch_norm
from asga_jax.runs import build
from asga_jax.runs import config as config_lib
from asga_jax.training import search_settings
from asga_jax.xla import compile_cache

_OUTPUT = flags.DEFINE_string("output", "runs/after_training", "Results.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Trained weights.")
_BUDGET = flags.DEFINE_string("budget", "bops=2.5bit", "The cost of all.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds, from 0.")
_STEPS = flags.DEFINE_integer("steps", 1000, "Of every training.")
_RATE = flags.DEFINE_float("learning_rate", 0.05, "Of every training.")
_AVERAGE = flags.DEFINE_float(
  "ema_decay", 0.0, "Of the average of every training; 0 for none."
)
_BATCH = flags.DEFINE_integer("batch_size", 128, "Of trainings and searches.")
_TRAINED = flags.DEFINE_list("trained", "uniform,default,random", "Methods.")
_ALL = "uniform,random,prior,search_50,both_50,search_200,both_200,default"
_UNTRAINED = flags.DEFINE_list("untrained", _ALL, "Methods, only corrected.")
_CORRECTED, _SCORED = 320, 128  # images
# What frozen searches differ in; configs/mobilenetv2.py has these.
_FROZEN = {
  "freeze_batch_norm": True,
  "learning_rate": 0.01,
  "logit_learning_rate": 0.01,
}
# Steps at bits that are drawn at the same rates throughout.
_DRAWN: dict[str, Any] = {
  "sampled": True,
  "preset": "sgd",
  "sharpness": {},
  "logit_learning_rate": 0.0,
  "temperature": (1.0, 1.0),
}
_FITTED = 1024  # images
_SCORES = search_settings.SCORES


def make_config(seed: int) -> Any:
  """Configure ResNet-20 on CIFAR-10, all else by default."""
  config = config_lib.default_config()
  config.model = "resnet20_a"
  config.deployed.update(image_size=32, num_classes=10, stem="small")
  config.data.update(name="cifar10", normalisation="torchvision")
  config.weights.update(path=_WEIGHTS.value, name_map="resnet_cifar10")
  config.search.seed = config.finetune.seed = seed
  config.finetune.update(
    steps=_STEPS.value,
    learning_rate=_RATE.value,
    ema_decay=_AVERAGE.value,
  )
  return config


class Bench:
  """One seed: its network, its policies and their trainings."""

  def __init__(self, seed: int, dataset: data_lib.Dataset, plain: Any):
    """Build the calibrated network that everything starts from."""
    self.seed, self.plain = seed, plain
    weights = pathlib.Path(str(_WEIGHTS.value)).stem
    name = f"{weights}_{_BUDGET.value.replace('=', '_')}_{_BATCH.value}"
    self.folder = pathlib.Path(_OUTPUT.value) / name / f"seed{seed}"
    self.folder.mkdir(parents=True, exist_ok=True)
    self.config = make_config(seed)
    self.splits = data_lib.split_proxy(dataset, heldout_fraction=0.0, seed=seed)
    self.augment = build.make_prepare(self.config, dataset, train=True)
    self.network = build.make_network(self.config, dataset.num_classes)
    self.start: Any = build.make_searchable(
      self.config, dataset.num_classes, next(self.inputs(_BATCH.value))
    )

  def inputs(self, size: int, count: int = 1) -> Iterator[jax.Array]:
    """Yield training images as the network sees them, without augmentation."""
    order = {"batch_size": size, "batches": count, "seed": self.seed}
    return evaluate.norm_inputs(self.splits.train, self.plain, **order)

  def batches(self, steps: int) -> Iterator[Any]:
    """Yield training batches."""
    for step in range(steps):
      yield batches_lib.batch_at(
        self.splits.train, step, batch_size=_BATCH.value, seed=self.seed
      )

  @functools.cached_property
  def unscored(self) -> asga_jax.SearchResult:
    """What all policies are chosen from, with scores drawn at random."""
    network, shape = self.start.deployed_network
    space = search_space.build(self.start, network)
    draw = np.random.default_rng(self.seed).normal
    scores = {group: draw(size=len(x)) for group, x in space.widths.items()}
    return asga_jax.SearchResult(
      self.start, space, {"random": scores}, _BUDGET.value, "random", (), shape
    )

  @functools.cached_property
  def prior(self) -> asga_jax.SearchResult:
    """Divergences of one tensor at a time, of the network to start from."""
    return asga_jax.measure_scores(
      self.start,
      [np.asarray(next(self.inputs(_SCORED)))],
      budget=_BUDGET.value,
      cache=self.folder / "prior.json",
      progress=False,
    )

  def search(self, kind: str, steps: int) -> None:
    """Search, from the prior if `both`; keep the policy by each score."""
    began = time.time()
    config = make_config(self.seed)
    config.search.update(_FROZEN if kind.startswith("frozen") else {})
    config.search.sampled = kind.startswith("sampled")
    settings = config_lib.search_settings(config)
    if kind == "drawn":
      settings = dataclasses.replace(settings, **_DRAWN)
    found = asga_jax.search_policy(
      self.start,
      self.batches(steps),
      budget=_BUDGET.value,
      settings=dataclasses.replace(settings, steps=steps),
      prior=self.prior if kind.endswith("both") else None,
      prepare=self.augment,
      progress=False,
    )
    found_by = {name: asga_jax.allocate(found, score=name) for name in _SCORES}
    if kind == "drawn":
      fitted = asga_jax.fit_scores(
        found,
        self.batches(_FITTED // _BATCH.value),
        prepare=self.plain,
        seed=self.seed,
        progress=False,
      )
      logging.info("fitted: %s", fitted.provenance)
      found_by["fitted"] = asga_jax.allocate(fitted)
    if config.search.sampled:
      measured = asga_jax.measure_scores(
        found.model,
        list(self.inputs(_SCORED, 4)),
        budget=_BUDGET.value,
        progress=False,
      )
      found_by["kl"] = asga_jax.allocate(measured)
    for score, policy in found_by.items():
      path = self.folder / f"policy-{kind}_{steps}-{score}.json"
      asga_jax.save_policy(policy, path)
    logging.info("%s_%d took %.0f s", kind, steps, time.time() - began)

  def policy(self, method: str) -> asga_jax.Policy:
    """Make a method's policy, or read it."""
    if method == "uniform":
      return result_lib.uniform_policy(self.unscored)
    if method == "random":
      return asga_jax.allocate(self.unscored)
    if method == "prior":
      return asga_jax.allocate(self.prior)
    if method == "default":
      settings = self.config.search
      method = f"search_{settings.steps}:{settings.score}"
    method, _, score = method.partition(":")
    score = score or "log_prob"
    kind, length = method.split("_")
    steps = int(length)
    path = self.folder / f"policy-{kind}_{steps}-{score}.json"
    if not path.exists():
      self.search(kind, steps)
    return asga_jax.load_policy(path)

  def train(self, fixed: Any) -> Any:
    """Train a network at its policy."""
    trained = asga_jax.train_policy(
      fixed,
      self.batches(_STEPS.value),
      settings=config_lib.finetune_settings(self.config),
      prepare=self.augment,
      progress=False,
    )
    batch_norm.reestimate_batch_norm(trained, self.inputs(250, 8))
    return trained

  def correct(self, fixed: Any) -> Any:
    """Correct biases and batch norm of a network at its policy."""
    images = list(self.inputs(_CORRECTED))
    return asga_jax.correct_bias(fixed, images, reference=self.network)

  def cell(self, kind: str, method: str) -> seeds.Row:
    """Compute one figure, or read it."""
    training = {
      "steps": _STEPS.value,
      "learning_rate": _RATE.value,
      "ema_decay": _AVERAGE.value,
    }
    settings = training if kind == "trained" else {}
    name = "_".join([kind, *(f"{x:g}" for x in settings.values())])
    path = self.folder / f"{name}-{method.replace(':', '-')}.json"
    if path.exists():
      row: seeds.Row = json.loads(path.read_text())
      return row
    policy = self.policy(method)
    began = time.time()
    fixed = asga_jax.with_policy(self.start, policy)
    model = self.train(fixed) if kind == "trained" else self.correct(fixed)
    found = evaluate.accuracy(model, self.splits.report, self.plain)
    seen = evaluate.accuracy(model, self.splits.train, self.plain, batches=20)
    layers = policy.layers.values()
    row = {
      "settings": settings,
      "top1": 100 * found,
      "train_top1": 100 * seen,
      "budget_used": 100 * float(policy.cost["budget_used"]),
      "bits": [[x.weight_bits, x.activation_bits] for x in layers],
      "seconds": time.time() - began,
    }
    files.write_text_atomic(path, json.dumps(row) + "\n")
    logging.info("seed %d, %s %s: %s", self.seed, kind, method, row)
    return row


def main(_: list[str]) -> None:
  """Compute what is missing, trained first, and print the tables."""
  logging.set_verbosity(logging.INFO)
  compile_cache.enable()
  config = make_config(0)
  dataset = build.load_data(config)
  # One for all, so that evaluations share a compilation.
  plain = build.make_prepare(config, dataset, train=False)
  benches = [Bench(seed, dataset, plain) for seed in range(_SEEDS.value)]
  for kind, flag in (("trained", _TRAINED), ("untrained", _UNTRAINED)):
    rows: dict[str, list[seeds.Row]] = {name: [] for name in flag.value}
    for bench in benches:
      for name, cells in rows.items():
        cells.append(bench.cell(kind, name))
    if rows:
      print(seeds.format_table(kind, rows), flush=True)


if __name__ == "__main__":
  flags.mark_flag_as_required("weights")
  app.run(main)
