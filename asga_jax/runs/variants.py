"""Variants of the configurations in `configs/`, behind a colon."""

import ml_collections

from asga_jax.runs import config_checks


def apply_variant(
  config: ml_collections.ConfigDict, variant: str
) -> ml_collections.ConfigDict:
  """Set the proxy, the schedule and the deployed network of a variant.

  Args:
    config: to change; with the model and the stem.
    variant: words joined by commas: 'cifar10' for the paper's proxy with the
      schedule of GMPQ's release, else the embedded proxy; 'small' for costs of
      the network as it is searched, on 32x32 images of 10 classes, else those
      that the configuration has, of ImageNet; 'imagenet' for the deployed
      network itself on images of its size, which `data.name` is to name.

  Returns:
    The same configuration.

  Raises:
    ValueError: unknown variant.
  """
  words = [word for word in variant.split(",") if word]
  if words != ["imagenet"] and not {*words} <= {"cifar10", "small"}:
    raise config_checks.ConfigError(
      f"variant {variant!r} is unknown; accepted: 'cifar10', 'small', both "
      "joined by a comma, 'imagenet', or none"
    )
  if "imagenet" in words:
    config.stem = config.deployed.stem
    config.data.name = ""
    config.data.image_size = config.deployed.image_size
    config.eval_batch_size = 50
  if "cifar10" in words:
    config.data.name = "cifar10"
    config.batch_size = 256
    config.search.steps = 25 * 50_000 // 256
    config.pretrain.steps = 25 * 50_000 // 256
    config.search.learning_rate = 0.1
    config.finetune.steps = 25 * 50_000 // 256
    config.checkpoint_every = 200
  if "small" in words:
    config.deployed.image_size = config.data.image_size
    config.deployed.num_classes = 10
    config.deployed.stem = config.stem
  return config
