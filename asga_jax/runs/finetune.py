"""One fine-tuning in a work directory: policy and data in, weights out."""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import logging

from asga_jax import data as data_lib
from asga_jax import finetune
from asga_jax import policy as policy_lib
from asga_jax.data import batches as batches_lib
from asga_jax.runs import (
  build,
  checkpoints,
  finetune_start,
  lock,
  meeting,
  processes,
  read,
  recorded_loop,
  report,
  summary,
  workdir,
)
from asga_jax.runs import config as config_lib
from asga_jax.runs import tensorboard as tensorboard_lib
from asga_jax.training import sharding
from asga_jax.xla import ahead

# Figures that the progress display shows.
SHOWN = ("loss", "accuracy")


def run_finetuning(
  config: ml_collections.ConfigDict,
  path: str | pathlib.Path,
  *,
  tensorboard: bool = False,
) -> read.FinishedFinetuning:
  """Train a network at its policy, or go on with one that was interrupted.

  The directory holds `config.json`, `policy.json` (but for a float network),
  `metrics.jsonl`, `checkpoints/` and, at the end, `weights.safetensors` as they
  were evaluated, `weights_ema.safetensors` if averages were asked for,
  `finetune.png`, `summary.json` and `report.html`. A training that has ended is
  read, not repeated.

  Args:
    config: see `config_lib.default_config`.
    path: the work directory.
    tensorboard: whether to write event files to `tensorboard/` there.

  Returns:
    The policy and the summary.

  Raises:
    ValueError: bad configuration, policy, weights, data, directory or
      checkpoint, or a directory that another process is running in; all before
      the first step.
    DivergedError: the loss is not finite.
  """
  config = config_lib.of_finetune(config)
  config_lib.check_finetune_config(config)
  config_lib.check_unread(config)
  if tensorboard:
    tensorboard_lib.check_installed()
  meeting.check_alike(config, path)
  directory = workdir.open_workdir(path, config, write=False)
  if (directory / "summary.json").exists():
    if tensorboard:
      recorded_loop.open_events(directory).close()
    return read.read_finished_finetuning(config, directory)
  with lock.hold(directory):
    return _finetune(config, directory, tensorboard)


def _finetune(
  config: ml_collections.ConfigDict, directory: pathlib.Path, tensorboard: bool
) -> read.FinishedFinetuning:
  """Run what is left of a training, in a directory that is held."""
  policy = finetune_start.read_policy(config)
  if policy is not None:
    _check_alike(policy)
  dataset = build.load_data(config)
  split = data_lib.Split(dataset.train_images, dataset.train_labels)
  begun = checkpoints.latest_step(directory / "checkpoints") is not None
  made = build_finetuning(config, policy, dataset, split, begun=begun)
  teacher = finetune_start.make_teacher(config, dataset.num_classes)
  # Not before: a refused configuration must not claim the directory.
  workdir.open_workdir(directory, config)
  if policy is not None:
    _keep_policy(policy, directory)
  state, first = made.state, None
  restored = checkpoints.restore_latest(
    directory / "checkpoints", state, set_aside=True
  )
  if restored is not None:
    first, state = restored
    logging.info("going on from the checkpoint of step %d", first)
  batches = _batches(config, split, first or 0)
  if teacher is not None:
    batches = finetune.taught(
      batches,
      teacher,
      prepare=build.make_prepare(config, dataset, train=True),
      seed=config.finetune.seed,
      first=first or 0,
      mesh=made.mesh,
    )
  if (first or 0) < config.finetune.steps:
    example = next(batches)
    placed = sharding.place_batch(example, made.mesh)
    compiled = ahead.compile_step(made.step, state, placed)
    made = made._replace(step=compiled)
    batches = itertools.chain([example], batches)
  # Open to the end: the last checkpoint is written while the result is made.
  with checkpoints.Checkpoints(
    directory / "checkpoints", **config.checkpoints
  ) as kept:
    state = recorded_loop.train(
      made.step,
      state,
      batches,
      made.mesh,
      recorded_loop.Plan(
        label="fine-tuning",
        steps=config.finetune.steps,
        flush_every=config.flush_every,
        save_every=config.checkpoint_every,
        shown=SHOWN,
        skip_nonfinite=config.finetune.skip_nonfinite,
      ),
      directory,
      first,
      kept.save,
      tensorboard=tensorboard,
    )
    figures = summary.summarise_finetuning(
      config, made, state, dataset, split, directory
    )
  if processes.first():
    summary.plot_finetuning(config, directory)
  report.end_run(directory, figures)
  return read.FinishedFinetuning(policy, figures)


def build_finetuning(
  config: ml_collections.ConfigDict,
  policy: policy_lib.Policy | None,
  dataset: data_lib.Dataset,
  split: data_lib.Split,
  *,
  begun: bool = False,
) -> finetune.Training:
  """Build a training that is ready for its first step.

  Args:
    config: from `config_lib.of_finetune`.
    policy: None for the float network.
    dataset: the data.
    split: its training images.
    begun: whether weights come from a checkpoint later.

  Returns:
    The training, calibrated on the first training batch.

  Raises:
    ValueError: bad values or weights, or a batch that does not divide over the
      devices.
  """
  mesh = sharding.data_mesh(model=config.finetune.model_devices)
  sharding.check_batch_size(config.batch_size, mesh, config.finetune.accumulate)
  batches_lib.steps_per_epoch(len(split), config.batch_size)
  batches_lib.steps_per_epoch(len(split), config.eval_batch_size)
  raw = batches_lib.batch_at(
    split, 0, batch_size=config.batch_size, seed=config.finetune.seed
  )
  plain = build.make_prepare(config, dataset, train=False)
  images = plain(jax.random.key(0), {"image": jnp.asarray(raw["image"])})
  model = finetune_start.make_model(
    config, policy, dataset.num_classes, images["image"], begun=begun
  )
  prepare = build.make_prepare(config, dataset, train=True)
  return finetune.start_training(
    model,
    config_lib.finetune_loss(config),
    settings=config_lib.finetune_settings(config),
    # A teacher needs the images before the step, see `finetune.taught`.
    prepare=None if config.finetune.distillation.weight else prepare,
    mesh=mesh,
  )


def _batches(
  config: ml_collections.ConfigDict, split: data_lib.Split, first: int
) -> Iterator[Any]:
  """Give this process's raw batches from a step on."""
  return batches_lib.batches_at(
    split,
    range(first, config.finetune.steps),
    batch_size=config.batch_size,
    seed=config.finetune.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    crops=True,
  )


def _check_alike(policy: policy_lib.Policy) -> None:
  """Raise MeetingError where the policy is not that of the first process."""
  told = processes.from_first(lambda: policy_lib.to_json(policy))
  if policy_lib.from_json(told).layers != policy.layers:
    raise meeting.MeetingError(
      "this process reads another policy than process 0; expected one file for"
      " all, or equal ones"
    )


def _keep_policy(policy: policy_lib.Policy, directory: pathlib.Path) -> None:
  """Copy the policy; a training goes on at the one that it began with."""
  kept = directory / "policy.json"
  if not kept.exists():
    if processes.first():
      policy_lib.save(policy, kept)
  elif policy_lib.load(kept).layers != policy.layers:
    raise workdir.WorkdirError(
      f"the policy is not that which the training in {directory} began with,"
      f" {kept}: put that back, or choose another --workdir"
    )
