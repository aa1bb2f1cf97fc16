"""The float network that a search starts from, trained where there is none."""

import pathlib

import ml_collections
from absl import logging

from asga_jax.runs import config as config_lib
from asga_jax.runs import finetune, read

FLOAT = "float"
# Settings that come from the search, whose batches and devices it shares.
_AS_SEARCH = (
  "model_devices",
  "batch_norm",
  "accumulate",
  "compute_dtype",
  "skip_nonfinite",
)


def is_due(config: ml_collections.ConfigDict) -> bool:
  """Tell whether a search trains the float network that it starts from."""
  return not config.weights.path and config.pretrain.steps > 0


def of_pretraining(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Make the configuration of the float training before a search."""
  made = config_lib.of_finetune(config_lib.default_config())
  made.update(config_lib.of_finetune(config))
  made.finetune.update(
    {
      "policy": "float",
      "seed": config.search.seed,
      **{name: config.search[name] for name in _AS_SEARCH},
      **config.pretrain,
    }
  )
  return made


def train_float(
  config: ml_collections.ConfigDict, directory: pathlib.Path
) -> None:
  """Train the float network of a search, or go on with that; or read it.

  Args:
    config: of the search.
    directory: its work directory; the training's is `float` in it, with all
      that a fine-tuning leaves.

  Raises:
    ValueError: see `finetune.run_finetuning`.
    DivergedError: the loss is not finite.
  """
  path = directory / FLOAT
  logging.info(
    "the search starts from a float network, trained first for %d steps in %s",
    config.pretrain.steps,
    path,
  )
  finetune.run_finetuning(of_pretraining(config), path)


def with_weights(
  config: ml_collections.ConfigDict, directory: pathlib.Path
) -> ml_collections.ConfigDict:
  """Copy a configuration, naming the float weights that were trained for it.

  Args:
    config: of the search.
    directory: its work directory.
  """
  copy = config.copy_and_resolve_references()
  if is_due(config):
    copy.weights.path = str(directory / FLOAT / read.WEIGHTS)
  return copy
