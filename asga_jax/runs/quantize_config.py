"""The configuration of a quantization without training."""

import ml_collections

from asga_jax.runs import config as config_lib
from asga_jax.runs import config_checks
from asga_jax.scores import measured, within

# What it does not read: keys, or groups of them.
UNREAD = (
  "search",
  "choice",
  "finetune",
  "pretrain",
  "batch_size",
  "batch_norm_batches",
  "checkpoint_every",
  "checkpoints",
  "flush_every",
  "data.pad",
  "data.heldout_fraction",
)
SPLITS = ("test", "train")
_LEAST = {"images": 1, "batch_size": 1, "scored_batches": 1, "evaluations": 0}


def of_quantize(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Copy a configuration without what only other commands read."""
  return config_checks.drop(config.copy_and_resolve_references(), UNREAD)


def check(config: ml_collections.ConfigDict) -> None:
  """Check the keys, types and values of a configuration.

  Args:
    config: from `of_quantize`.

  Raises:
    ValueError: names the key, its value and what is accepted.
  """
  defaults = config_checks.drop(config_lib.default_config(), UNREAD)
  config_checks.check_keys(config, defaults)
  config_lib.check_common(config)
  if not config.weights.path:
    raise config_checks.ConfigError(
      "config.weights.path is empty; expected the path of trained weights,"
      " which nothing here trains"
    )
  given = config.post_training
  for name, least in _LEAST.items():
    if given[name] < least:
      raise config_checks.ConfigError(
        f"config.post_training.{name} is {given[name]}; expected at least"
        f" {least}"
      )
  if not 0 <= given.crop <= 1:
    raise config_checks.ConfigError(
      f"config.post_training.crop is {given.crop}; expected a share up to 1, or"
      " 0 for that of config.data.crop"
    )
  if not all(
    isinstance(share, int | float) and 0 < share <= 100 for share in given.curve
  ):
    raise config_checks.ConfigError(
      f"config.post_training.curve is {given.curve}; expected shares of the"
      " policy's cost up to 100, such as (0.7, 1.2), or () for none"
    )
  for name, accepted in {"split": SPLITS, "score": measured.SCORES}.items():
    if given[name] not in accepted:
      raise config_checks.ConfigError(
        f"config.post_training.{name} is {given[name]!r}; expected one of"
        f" {', '.join(accepted)}"
      )
  if not (config.data.name or given.source):
    raise config_checks.ConfigError(
      "config.data.name and config.post_training.source are both empty;"
      " expected data, or --images=PATH with a folder or a list of images"
    )
  data = config.data
  if not (data.name or data.normalisation or data.preset):
    raise config_checks.ConfigError(
      "config.data.normalisation is empty, and so is config.data.name, by"
      " whose images one could normalise; expected the normalisation that the"
      " weights were trained with"
    )
  if not config.data.name and given.split == "train":
    raise config_checks.ConfigError(
      "config.post_training.split is 'train' and config.data.name is empty;"
      " expected 'test', of images that are held out, or data"
    )
  if within.is_accuracy(config.budget):
    within.parse(config.budget)
    if given.evaluations:
      raise config_checks.ConfigError(
        f"config.post_training.evaluations is {given.evaluations} and"
        f" config.budget is {config.budget!r}; expected 0 evaluations beside a"
        " budget by accuracy, or another budget"
      )
