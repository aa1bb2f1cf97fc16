"""The trained networks that lie in work directories."""

import json
import os
import pathlib
from typing import NamedTuple

import ml_collections
from flax import nnx

from asga_jax import conversion
from asga_jax import policy as policy_lib
from asga_jax.runs import build as search_parts
from asga_jax.runs import finetune_config, workdir
from asga_jax.runs import search as search_run
from asga_jax.weights import load as pretrained

WEIGHTS = "weights.safetensors"
AVERAGED_WEIGHTS = "weights_ema.safetensors"


class TrainedRun(NamedTuple):
  """A search or a fine-tuning that has ended, without its data."""

  config: ml_collections.ConfigDict
  # Of the data, the batch norm and the initial weights.
  seed: int
  policy: policy_lib.Policy | None  # None for a float network
  # At its policy.
  model: nnx.Module
  # The same weights with all step sizes there are: a search's has those of
  # every candidate.
  source: nnx.Module
  # The running average of a fine-tuning, if it was kept.
  averaged: nnx.Module | None = None


def read(path: str | os.PathLike[str]) -> TrainedRun:
  """Read the network of a search or a fine-tuning from its work directory.

  Args:
    path: the directory.

  Raises:
    ValueError: no such run, one that has not ended, or a damaged file.
  """
  directory = pathlib.Path(path)
  config = ml_collections.ConfigDict(workdir.read_config(directory))
  if not (directory / "summary.json").exists():
    raise workdir.WorkdirError(
      f"the run in {directory} has not ended: it has no summary.json; give "
      "its own command again, which goes on with it"
    )
  read_kind = _read_search if is_search(directory) else _read_finetune
  return read_kind(directory, config)


def is_search(path: str | os.PathLike[str]) -> bool:
  """Tell a search's work directory from that of a fine-tuning.

  Raises:
    ValueError: it is neither.
  """
  found = workdir.read_config(path)
  if "search" not in found and "finetune" not in found:
    raise workdir.WorkdirError(
      f"{pathlib.Path(path) / workdir.CONFIG_NAME} is neither of a search nor "
      "of a fine-tuning"
    )
  return "search" in found


def _read_search(
  directory: pathlib.Path, config: ml_collections.ConfigDict
) -> TrainedRun:
  model = search_run.restore(directory).model
  policy = policy_lib.load(directory / "policy.json")
  return TrainedRun(
    config=config,
    seed=config.search.seed,
    policy=policy,
    model=conversion.with_policy(model, policy),
    source=model,
  )


def _read_finetune(
  directory: pathlib.Path, config: ml_collections.ConfigDict
) -> TrainedRun:
  finetune_config.check_config(config)
  num_classes = read_summary(directory).get("classes")
  if not isinstance(num_classes, int) or num_classes < 1:
    raise workdir.WorkdirError(
      f"{directory / 'summary.json'}: classes is {num_classes!r}; expected a "
      "number of classes"
    )
  network = search_parts.make_network(
    config, num_classes, seed=config.finetune.seed, trained=False
  )
  policy = None
  if not finetune_config.is_float(config):
    policy = policy_lib.load(directory / "policy.json")
    # Steps and signedness come from the file.
    network = conversion.quantize(
      network,
      search_parts.blank_images(config),
      policy,
      weight_quantizer=config.weight_quantizer,
      activation_quantizer=config.activation_quantizer,
      per_channel=config.per_channel,
    )
  model = pretrained.load_weights(network, directory / WEIGHTS)
  averaged = None
  if config.finetune.ema_decay:
    averaged = pretrained.load_weights(network, directory / AVERAGED_WEIGHTS)
  return TrainedRun(
    config=config,
    seed=config.finetune.seed,
    policy=policy,
    model=model,
    source=model,
    averaged=averaged,
  )


def read_summary(directory: pathlib.Path) -> dict[str, object]:
  """Read the summary of a run that has ended.

  Raises:
    WorkdirError: it is damaged.
  """
  file = directory / "summary.json"
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
      raise ValueError("it holds no object")
  except ValueError as error:
    raise workdir.WorkdirError(
      f"{file} is damaged ({error}); remove it, and the command of the run "
      "makes it again from the last checkpoint"
    ) from error
  return found
