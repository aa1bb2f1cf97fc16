"""Runs of the tiny network: their policies, their data, and what they leave."""

import dataclasses
import json

import asga_jax
from asga_jax import data as data_lib
from asga_jax import policy as policy_lib
from asga_jax.data import embedded
from asga_jax.runs import (
  checkpoints,
  finetune_start,
  read,
  search_start,
  workdir,
)
from asga_jax.runs import config as config_lib
from asga_jax.runs import finetune as finetune_run
from asga_jax.runs import search as search_run
from asga_jax.weights import load as pretrained

MIXED = {"first": (8, 8), "middle": (3, 4), "inner": (2, 5), "head": (8, 8)}


def make_policy(config, bits=MIXED, **changes):
  made = finetune_start.uniform_policy(config, 4)
  chosen = {
    path: dataclasses.replace(
      made.layers.get(path, made.layers["middle"]),
      weight_bits=pair[0],
      activation_bits=pair[1],
    )
    for path, pair in bits.items()
  }
  return dataclasses.replace(made, layers=chosen, **changes)


def three_digits(times=1):
  """Digits 0 to 2, so many times as large."""
  whole = embedded.digits()
  parts = {}
  for part in ("train", "test"):
    labels = getattr(whole, f"{part}_labels")
    images = getattr(whole, f"{part}_images")[labels < 3]
    parts[f"{part}_images"] = images.repeat(times, axis=1).repeat(times, axis=2)
    parts[f"{part}_labels"] = labels[labels < 3]
  return data_lib.Dataset(
    name="three", class_names=("a", "b", "c"), flip=False, **parts
  )


def start_training(config):
  """Makes the network that a training would start from."""
  config = config_lib.of_finetune(config)
  config_lib.check_finetune_config(config)
  made = _build(config, data_lib.load(config.data.name))
  return finetune_run.finetune.trained_model(made, made.state)


def _build(config, dataset):
  policy = finetune_start.read_policy(config)
  split = data_lib.Split(dataset.train_images, dataset.train_labels)
  return finetune_run.build_finetuning(config, policy, dataset, split)


# Work directories as runs leave them: nothing is compiled for them.


def leave_search(directory, config):
  """Fills the work directory of a search."""
  config = config_lib.of_search(config)
  dataset = data_lib.load("digits")
  splits = data_lib.split_proxy(dataset, heldout_fraction=0.0, seed=0)
  made = search_start.set_ranges(
    config, search_run.build_search(config, dataset.info), dataset, splits
  )
  _keep(directory, config, made.state, {"proxy": "digits", "num_classes": 10})
  found = read.end_search(config, made, made.state, "digits")
  policy_lib.save(asga_jax.allocate(found), directory / "policy.json")
  return directory


def leave_training(directory, config):
  """Fills the work directory of a fine-tuning."""
  config = config_lib.of_finetune(config)
  dataset = data_lib.load(config.data.name)
  made = _build(config, dataset)
  model = finetune_run.finetune.trained_model(made, made.state)
  pretrained.save_weights(model, directory / "weights.safetensors")
  policy = finetune_start.read_policy(config)
  policy_lib.save(policy, directory / "policy.json")
  _keep(directory, config, made.state, {"classes": dataset.num_classes})
  return directory


def _keep(directory, config, state, known):
  """Writes what both kinds of run leave."""
  workdir.open_workdir(directory, config)
  with checkpoints.Checkpoints(directory / "checkpoints") as kept:
    for step in (2, 4):
      kept.save(step, state, metadata=known)
  numbers = {k: v for k, v in known.items() if k == "classes"}
  (directory / "summary.json").write_text(json.dumps(numbers))
