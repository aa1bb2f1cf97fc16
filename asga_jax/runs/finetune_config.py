"""The configuration of a fine-tuning from the command line."""

import ml_collections

from asga_jax import finetune
from asga_jax.runs import config as search_config
from asga_jax.runs import config_checks as config_lib
from asga_jax.training import losses, steps
from asga_jax.training import settings as setup

# Keys, or groups of them, that only a search reads.
OF_SEARCH = (
  "budget",
  "latency_table",
  "bits",
  "tie_shared_inputs",
  "data.heldout_fraction",
  "search",
)


def of_finetune(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Copy a configuration without what only a search reads."""
  return config_lib.drop(config.copy_and_resolve_references(), OF_SEARCH)


def check_config(config: ml_collections.ConfigDict) -> None:
  """Check the keys, types and values of a fine-tuning's configuration.

  Args:
    config: from `of_finetune`.

  Raises:
    ValueError: names the key, its value and what is accepted.
  """
  defaults = config_lib.drop(search_config.default_config(), OF_SEARCH)
  config_lib.check_config(config, defaults)
  make_settings(config)
  make_loss(config)
  search_config.check_common(config)
  weights, start = config.weights, config.finetune.start_from
  if weights.path and start:
    raise config_lib.ConfigError(
      f"config.weights.path is {weights.path!r} and config.finetune.start_from "
      f"is {start!r}; expected one of them"
    )
  if not weights.path and (
    weights.name_map or (tuple(weights.skip) and not start)
  ):
    raise config_lib.ConfigError(
      f"config.weights.path is empty, and config.weights.name_map is "
      f"{weights.name_map!r} and config.weights.skip is {tuple(weights.skip)}; "
      "expected the path of a file of weights"
    )
  distillation = config.finetune.distillation
  if bool(distillation.weight) != bool(distillation.path):
    raise config_lib.ConfigError(
      "config.finetune.distillation.weight is "
      f"{distillation.weight} and config.finetune.distillation.path is "
      f"{distillation.path!r}; expected a weight above 0 and the path of the "
      "teacher's float weights, or neither"
    )


def is_float(config: ml_collections.ConfigDict) -> bool:
  """Tell whether a fine-tuning is of the float network, without a policy."""
  return config.finetune.policy in ("", "float")


def make_settings(
  config: ml_collections.ConfigDict,
) -> finetune.FinetuneSettings:
  """Make the settings of the training; raises ValueError for a bad value."""
  return setup.read_settings(finetune.FinetuneSettings, config.finetune)


def make_loss(config: ml_collections.ConfigDict) -> steps.LossFn:
  """Make the loss of the training; raises ValueError for a bad value."""
  group = config.finetune
  return losses.make_loss(
    label_smoothing=group.label_smoothing,
    distillation_weight=group.distillation.weight,
    temperature=group.distillation.temperature,
  )
