"""The configuration of all commands: its keys, and what each command reads."""

import ml_collections

from asga_jax import finetune, models
from asga_jax.data import presets
from asga_jax.quantization import surgery
from asga_jax.runs import config_checks, config_rules, config_scores
from asga_jax.training import losses, steps
from asga_jax.training import search_settings as searching
from asga_jax.training import settings as setup

# What a search does not read: keys, or groups of them.
OF_FINETUNE = ("finetune", "post_training")
# What a fine-tuning does not read.
OF_SEARCH = (
  "budget",
  "latency_table",
  "bits",
  "tie_shared_inputs",
  "data.heldout_fraction",
  "pretrain",
  "search",
  "prior",
  "choice",
  "post_training",
)

# Of the random crop of images in memory, pixels.
_PAD = 4


def default_config() -> ml_collections.ConfigDict:
  """Give every key of a network's configuration, with its default.

  Returns:
    The configuration of MobileNetV2 on the embedded proxy. The files in
    `configs/` start from it. `finetune` is of the fine-tuning alone.
  """
  config = ml_collections.ConfigDict(
    {
      # One of asga_jax.models.CONSTRUCTORS, and its stem on the proxy: 'small'
      # keeps the resolution of small images, 'imagenet' is the cheaper.
      "model": "mobilenet_v2",
      "stem": "small",
      # Trained float weights to start from, see pretrained.load_weights: the
      # path of the file, empty for random ones; its map of names, empty where
      # they are ours; patterns of variables that stay random ('head/.*').
      "weights": {"path": "", "name_map": "", "skip": ()},
      # The training of the float network that a search starts from where no
      # weights are named; with 0 steps it starts from random ones.
      "pretrain": {"steps": 1000, "learning_rate": 0.05},
      # What costs are counted on: the network as it will be deployed.
      "deployed": {
        "image_size": 224,
        "num_classes": 1000,
        "stem": "imagenet",
      },
      # Such as 'bops=4bit', 'bops=34.7G', 'bops=2%', 'size=6MB', or several
      # joined by commas.
      "budget": "bops=4bit",
      # A file for latency budgets, which launch/latency.py measures.
      "latency_table": "",
      "bits": surgery.DEFAULT_BITS,
      # Bits of the first and the last layer, which are not searched.
      "end_bits": surgery.END_BITS,
      # Exceptions: fields of quantization.rules.Rule, the first match decides.
      "rules": (),
      # Whether layers that read the same tensor share their activation bits.
      "tie_shared_inputs": False,
      "weight_quantizer": "lsq",
      "activation_quantizer": "lsq_plus",
      "per_channel": True,
      "data": {
        # 'fashion_mnist_8k', 'digits', what TFDS calls it, or image files: two
        # lists, 'TRAIN.csv,TEST.csv', or folders of class folders, 'TRAIN,VAL'.
        "name": "fashion_mnist_8k",
        # Of TFDS, empty for $ASGA_DATA_DIR, or where lists and folders are.
        "dir": "",
        # Of lists, how many classes there are; 0 for the highest label and one.
        "classes": 0,
        # Whether images are read when needed, and cropped at random to train.
        "stream": False,
        # Streamed: processes that decode, damaged images to skip.
        "workers": 0,
        "bad_images": 0,
        "image_size": 32,
        # One of data.presets; empty for the two settings below.
        "preset": "",
        # Of image files, the share of the short side that is kept.
        "crop": 1.0,
        # One of data.normalisations; empty for that of the training images.
        "normalisation": "",
        # Pixels of the random crop's padding, of images in memory.
        "pad": _PAD,
        # The share of training images that a bilevel search holds out.
        "heldout_fraction": 0.5,
      },
      "batch_size": 64,
      "eval_batch_size": 250,
      # Batches of the report split that accuracies rest on; 0 for all.
      "report_batches": 0,
      # Batches that re-estimate batch norm before a policy is evaluated.
      "batch_norm_batches": 8,
      "search": setup.settings_group(searching.SearchSettings()),
      # What logits start from: 'kl' or 'sharp_kl' of the network before the
      # search, on so many training images, times search.prior_strength; ''
      # for equal logits.
      "prior": {"score": "", "images": 32},
      # How a policy is chosen once a search has ended: by search.score, or by
      # 'kl' or 'sharp_kl' (see scores.measured) of the searched network on so
      # many training images, or by 'fitted' (see scores.fitted), the losses of
      # so many drawn policies; then, but for 'fitted', by measuring so many
      # whole policies near the choice.
      "choice": {
        "score": "",
        "images": 128,
        "policies": 240,
        "evaluations": 0,
      },
      # Of launch/quantize.py, see scores.post_training.
      "post_training": {
        # Images without labels that ranges, scores and corrections come from, a
        # folder or a CSV file; empty for training images of `data`.
        "source": "",
        # Of the images of `source`, the share of the short side that is kept;
        # 0 for data.crop.
        "crop": 0.0,
        "images": 320,
        "batch_size": 32,
        # One of scores.measured.SCORES, and how many batches it is measured on.
        "score": "kl",
        "scored_batches": 1,
        # The most policies that are measured to improve on the scores' optimum.
        "evaluations": 0,
        # Other budgets at which policies and uniform bits are measured after
        # all else, as shares of what the policy costs; () for none.
        "curve": (0.7, 0.85, 1.2),
        # What a budget by accuracy is measured on: 'test', or 'train' for other
        # training images than those above.
        "split": "test",
        # A file to take scores from and keep them in; empty for the run's own.
        "scores": "",
      },
      "checkpoint_every": 100,
      # How many checkpoints are kept: the last, at least 2, and those of lowest
      # training loss, a mean over the steps since the one before.
      "checkpoints": {"keep": 3, "best": 0},
      "flush_every": 10,
    }
  )
  config.finetune = setup.settings_group(finetune.FinetuneSettings())
  config.finetune.update(
    {
      # A policy file; 'float' or empty for the float network; '4bit' for
      # uniform bits, with the first and the last layer at end_bits.
      "policy": "",
      # The work directory of a search or of a fine-tuning, to start from its
      # weights and step sizes. Other weights: see `weights`.
      "start_from": "",
      "label_smoothing": 0.0,
      "distillation": {
        # The share of the teacher's answers in the loss; 0 for no teacher.
        "weight": 0.0,
        "temperature": 4.0,
        # Float weights of the teacher, which is the same network in float,
        # and their map of names.
        "path": "",
        "name_map": "",
      },
    }
  )
  return config


def of_search(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Copy a configuration without what only a fine-tuning reads."""
  return config_checks.drop(config.copy_and_resolve_references(), OF_FINETUNE)


def of_finetune(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Copy a configuration without what only a search reads."""
  return config_checks.drop(config.copy_and_resolve_references(), OF_SEARCH)


def check_search_config(config: ml_collections.ConfigDict) -> None:
  """Check the keys, types and values of a search's configuration.

  Raises:
    ValueError: names the key, its value and what is accepted.
  """
  defaults = config_checks.drop(default_config(), OF_FINETUNE)
  config_checks.check_keys(of_search(config), defaults)
  given = bool(config.prior.score)
  searching.check_prior(search_settings(config), given=given)
  check_common(config)
  weights = config.weights
  if not weights.path and (weights.name_map or weights.skip):
    raise config_checks.ConfigError(
      f"config.weights.path is empty, and config.weights.name_map is "
      f"{weights.name_map!r} and config.weights.skip is {tuple(weights.skip)}; "
      "expected the path of a file of weights"
    )
  share = config.data.heldout_fraction
  if config.search.mode == "bilevel" and not 0 < share < 1:
    raise config_checks.ConfigError(
      f"config.data.heldout_fraction is {share}; a bilevel search needs a share"
      " above 0 and below 1"
    )
  config_scores.check(config)


def check_finetune_config(config: ml_collections.ConfigDict) -> None:
  """Check the keys, types and values of a fine-tuning's configuration.

  Args:
    config: from `of_finetune`.

  Raises:
    ValueError: names the key, its value and what is accepted.
  """
  defaults = config_checks.drop(default_config(), OF_SEARCH)
  config_checks.check_keys(config, defaults)
  finetune_settings(config)
  finetune_loss(config)
  check_common(config)
  weights, start = config.weights, config.finetune.start_from
  if weights.path and start:
    raise config_checks.ConfigError(
      f"config.weights.path is {weights.path!r} and config.finetune.start_from "
      f"is {start!r}; expected one of them"
    )
  if not weights.path and (
    weights.name_map or (tuple(weights.skip) and not start)
  ):
    raise config_checks.ConfigError(
      f"config.weights.path is empty, and config.weights.name_map is "
      f"{weights.name_map!r} and config.weights.skip is {tuple(weights.skip)}; "
      "expected the path of a file of weights"
    )
  distillation = config.finetune.distillation
  if bool(distillation.weight) != bool(distillation.path):
    raise config_checks.ConfigError(
      "config.finetune.distillation.weight is "
      f"{distillation.weight} and config.finetune.distillation.path is "
      f"{distillation.path!r}; expected a weight above 0 and the path of the "
      "teacher's float weights, or neither"
    )


def check_common(config: ml_collections.ConfigDict) -> None:
  """Check the values that commands share; one may lack some of them.

  Raises:
    ValueError: names the key, its value and what is accepted.
  """
  models.constructor(config.model)
  config_rules.make_rules(config)
  data = config.data
  given = {"crop": data.crop, "normalisation": data.normalisation}
  presets.find(data.preset, streamed=data.stream, **given)
  if not data.stream:
    for name in ("workers", "bad_images"):
      if data[name]:
        raise config_checks.ConfigError(
          f"config.data.{name} is {data[name]} and config.data.stream is False;"
          " expected 0, or True"
        )
  if not 0 < data.crop <= 1:
    raise config_checks.ConfigError(
      f"config.data.crop is {data.crop}; expected above 0 and up to 1"
    )
  lowest = {
    "batch_size": 1,
    "eval_batch_size": 1,
    "checkpoint_every": 1,
    "checkpoints.keep": 2,
    "checkpoints.best": 0,
    "flush_every": 1,
    "batch_norm_batches": 0,
    "report_batches": 0,
    "pretrain.steps": 0,
    "pretrain.learning_rate": 0,
    "data.pad": 0,
    "data.workers": 0,
    "data.bad_images": 0,
    "data.classes": 0,
    "data.image_size": 1,
    "deployed.image_size": 1,
    "deployed.num_classes": 1,
  }
  flat = config_checks.flatten(config)
  for name, least in lowest.items():
    if flat.get(name, least) < least:
      raise config_checks.ConfigError(
        f"config.{name} is {flat[name]}; expected at least {least}"
      )


def check_unread(config: ml_collections.ConfigDict) -> None:
  """Refuse for a new run what it would not read; raises ConfigError.

  Not where a run is read that older code has left.
  """
  data = config.data
  if data.stream and data.pad not in (0, _PAD):
    raise config_checks.ConfigError(
      f"config.data.pad is {data.pad} and config.data.stream is True: streamed"
      f" images are cropped as a preset says; expected {_PAD} or 0"
    )


def search_settings(
  config: ml_collections.ConfigDict,
) -> searching.SearchSettings:
  """Make the settings of the search; raises ValueError for a bad value."""
  return setup.read_settings(searching.SearchSettings, config.search)


def is_float(config: ml_collections.ConfigDict) -> bool:
  """Tell whether a fine-tuning is of the float network, without a policy."""
  return config.finetune.policy in ("", "float")


def finetune_settings(
  config: ml_collections.ConfigDict,
) -> finetune.FinetuneSettings:
  """Make the settings of the training; raises ValueError for a bad value."""
  return setup.read_settings(finetune.FinetuneSettings, config.finetune)


def finetune_loss(config: ml_collections.ConfigDict) -> steps.LossFn:
  """Make the loss of the training; raises ValueError for a bad value."""
  group = config.finetune
  return losses.make_loss(
    label_smoothing=group.label_smoothing,
    distillation_weight=group.distillation.weight,
    temperature=group.distillation.temperature,
  )
