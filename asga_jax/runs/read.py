"""What lies in work directories: searches and trained networks, read again."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import ml_collections
from absl import logging
from flax import nnx

from asga_jax import conversion, files, search
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.quantization import fixing
from asga_jax.runs import (
  build,
  checkpoints,
  choice,
  quantize_config,
  search_start,
  workdir,
)
from asga_jax.runs import config as config_lib
from asga_jax.training import state as state_lib
from asga_jax.weights import load

WEIGHTS = "weights.safetensors"
AVERAGED_WEIGHTS = "weights_ema.safetensors"


class FinishedSearch(NamedTuple):
  """What a search leaves in its work directory, and in memory."""

  policy: policy_lib.Policy
  summary: dict[str, Any]


class FinishedFinetuning(NamedTuple):
  """What a fine-tuning leaves in its work directory, and in memory."""

  policy: policy_lib.Policy | None  # None for a float network
  summary: dict[str, Any]


class FinishedQuantization(NamedTuple):
  """What a quantization without training leaves, on disk and in memory."""

  policy: policy_lib.Policy
  summary: dict[str, Any]


class TrainedRun(NamedTuple):
  """A run that has ended, of whatever command, without its data."""

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
  # Whether the model's batch norm is as it was evaluated.
  settled: bool = True


def is_search(path: str | os.PathLike[str]) -> bool:
  """Tell a search's work directory from that of another command.

  Raises:
    ValueError: it is of none.
  """
  found = workdir.read_config(path)
  if not {"search", "finetune", "post_training"} & {*found}:
    raise workdir.WorkdirError(
      f"{pathlib.Path(path) / workdir.CONFIG_NAME} is neither of a search nor "
      "of a fine-tuning"
    )
  return "search" in found


def read_finished_search(directory: pathlib.Path) -> FinishedSearch:
  """Read the policy and the summary of a search that has ended."""
  logging.info("the search in %s has ended; this is its result", directory)
  summary = read_summary(directory)
  return FinishedSearch(policy_lib.load(directory / "policy.json"), summary)


def read_finished_finetuning(
  config: ml_collections.ConfigDict, directory: pathlib.Path
) -> FinishedFinetuning:
  """Read the policy and the summary of a fine-tuning that has ended."""
  logging.info("the training in %s has ended; this is its result", directory)
  policy = None
  if not config_lib.is_float(config):
    policy = policy_lib.load(directory / "policy.json")
  return FinishedFinetuning(policy, read_summary(directory))


def read_finished_quantization(directory: pathlib.Path) -> FinishedQuantization:
  """Read the policy and the summary of a quantization that has ended."""
  logging.info("the run in %s has ended; this is its result", directory)
  policy = policy_lib.load(directory / "policy.json")
  return FinishedQuantization(policy, read_summary(directory))


def read_summary(directory: pathlib.Path) -> dict[str, Any]:
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
      "makes it again from what it kept"
    ) from error
  return found


def read_search(path: str | os.PathLike[str]) -> result_lib.SearchResult:
  """Read the result of a search from its newest checkpoint, without its data.

  Args:
    path: the work directory.

  Returns:
    The result, for `asga_jax.allocate`: any budget, the same scores.

  Raises:
    ValueError: no configuration or no whole checkpoint there.
  """
  directory = pathlib.Path(path)
  config = ml_collections.ConfigDict(workdir.read_config(directory))
  folder = directory / "checkpoints"
  config_lib.check_search_config(config)
  metadata = checkpoints.latest_metadata(folder)
  # Weights, ranges and signedness come from the checkpoint.
  model = build.make_searchable(
    config, metadata["num_classes"], None, trained=False
  )
  made = search.start_search(
    model,
    budget=config.budget,
    settings=search_start.settings_without_prior(config),
    costs=build.make_costs(config, workdir.kept_table(config, directory)),
  )
  try:
    restored = checkpoints.restore_latest(folder, made.state)
  except checkpoints.CheckpointError:
    # One from before the task's part of the logits was kept apart.
    whole = made.state._replace(task=())
    try:
      restored = checkpoints.restore_latest(folder, whole)
    except checkpoints.CheckpointError:
      restored = None
    if restored is None:
      raise
  assert restored is not None
  step, state = restored
  if step < config.search.steps:
    logging.warning(
      "the search in %s has not ended: this is step %d of %d",
      directory,
      step,
      config.search.steps,
    )
  found = end_search(config, made, state, metadata["proxy"])
  return choice.read(config, found, directory)


def end_search(
  config: ml_collections.ConfigDict,
  made: search.Search,
  state: state_lib.TrainState,
  proxy: str,
) -> result_lib.SearchResult:
  """End a search as `search.finish_search` does, with where it is from."""
  return search.finish_search(
    made,
    state,
    model_name=config.model,
    provenance={
      "proxy": proxy,
      **build.preprocessing(config),
      "config_sha256": workdir.config_sha256(config),
    },
  )


def read_trained(path: str | os.PathLike[str]) -> TrainedRun:
  """Read the network of a run from its work directory.

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
  if not is_search(directory):
    quantized = workdir.is_quantization(config)
    read = _read_quantized if quantized else _read_finetuned
    return read(directory, config)
  source = read_search(directory).model
  policy = policy_lib.load(directory / "policy.json")
  model = at_policy(source, policy)
  settled = (directory / WEIGHTS).exists()
  if settled:
    model = load.load_weights(model, directory / WEIGHTS)
  return TrainedRun(
    config=config,
    seed=config.search.seed,
    policy=policy,
    model=model,
    source=source,
    settled=settled,
  )


def load_run(path: str | os.PathLike[str]) -> nnx.Module:
  """Load the network of a run that has ended, of a search or any other.

  Args:
    path: the work directory of the command.

  Returns:
    The network at its policy in evaluation mode, with the weights and the
    statistics of batch norm of which the command reported its accuracy. It maps
    images as the run prepared them, float32 [batch, height, width, channels],
    to logits.

  Raises:
    ValueError: no such run, one that has not ended, a damaged file, or a search
      of an earlier version, whose directory lacks `weights.safetensors`.
  """
  files.check_path(path)
  trained = read_trained(path)
  if not trained.settled:
    raise workdir.WorkdirError(
      f"{os.fspath(path)} lacks {WEIGHTS}, which a search of this version"
      " keeps: remove its summary.json and give its command again, which ends"
      " anew from the last checkpoint."
    )
  return trained.model


def at_policy(model: nnx.Module, policy: policy_lib.Policy) -> nnx.Module:
  """Copy a searched network at a policy, in evaluation mode.

  Its batch norm has the statistics of the search's mixture of bits: whoever
  has the data re-estimates it, see `runs.data.settle`.
  """
  fixed = fixing.fix_bits(
    model,
    {
      path: (layer.weight_bits, layer.activation_bits)
      for path, layer in policy.layers.items()
    },
  )
  fixed.eval()
  return fixed


def _read_finetuned(
  directory: pathlib.Path, config: ml_collections.ConfigDict
) -> TrainedRun:
  config_lib.check_finetune_config(config)
  num_classes = read_summary(directory).get("classes")
  if not isinstance(num_classes, int) or num_classes < 1:
    raise workdir.WorkdirError(
      f"{directory / 'summary.json'}: classes is {num_classes!r}; expected a "
      "number of classes"
    )
  network = build.make_network(
    config, num_classes, seed=config.finetune.seed, trained=False
  )
  policy = None
  if not config_lib.is_float(config):
    policy = policy_lib.load(directory / "policy.json")
    network = _quantized(config, network, policy)
  model = load.load_weights(network, directory / WEIGHTS)
  averaged = None
  if config.finetune.ema_decay:
    averaged = load.load_weights(network, directory / AVERAGED_WEIGHTS)
  return TrainedRun(
    config=config,
    seed=config.finetune.seed,
    policy=policy,
    model=model,
    source=model,
    averaged=averaged,
  )


def _read_quantized(
  directory: pathlib.Path, config: ml_collections.ConfigDict
) -> TrainedRun:
  quantize_config.check(config)
  policy = policy_lib.load(directory / "policy.json")
  network = build.make_network(
    config, config.deployed.num_classes, trained=False
  )
  network = _quantized(config, network, policy)
  model = load.load_weights(network, directory / WEIGHTS)
  return TrainedRun(
    config=config, seed=0, policy=policy, model=model, source=model
  )


def _quantized(
  config: ml_collections.ConfigDict,
  network: nnx.Module,
  policy: policy_lib.Policy,
) -> nnx.Module:
  """Quantize a network whose steps and signedness come from a file."""
  return conversion.quantize(
    network,
    build.blank_images(config),
    policy,
    weight_quantizer=config.weight_quantizer,
    activation_quantizer=config.activation_quantizer,
    per_channel=config.per_channel,
  )
