"""One fine-tuning in a work directory: policy and data in, weights out."""

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from absl import logging
from flax import nnx

from asga_jax import data as data_lib
from asga_jax import (
  evaluate,
  files,
  finetune,
  finetune_config,
  finetune_parts,
  policy_table,
  pretrained,
  search_parts,
  trained_runs,
)
from asga_jax import policy as policy_lib
from asga_jax.analysis import plots
from asga_jax.data import batches as batches_lib
from asga_jax.quantization import calibration
from asga_jax.training import (
  ahead,
  checkpoints,
  compile_cache,
  metrics_log,
  recorded_loop,
  sharding,
  tensorboard_log,
  workdir,
)
from asga_jax.training import state as state_lib

# Figures that the progress display shows.
SHOWN = ("loss", "accuracy")
# Figures of a step that say something only of a search, or only where there is
# a second pass.
_OF_SEARCH = ("temperature", "logit_spread")
_OF_SECOND_PASS = (
  "gap",
  "smoothed_gap",
  "radius",
  "cosine",
  "perturbed_loss",
  "perturbed_gradient_norm",
)


class Finished(NamedTuple):
  """What a fine-tuning leaves in its work directory, and in memory."""

  policy: policy_lib.Policy | None
  summary: dict[str, Any]


def run(
  config: ml_collections.ConfigDict,
  path: str | pathlib.Path,
  *,
  tensorboard: bool = False,
) -> Finished:
  """Train a network at its policy, or go on with one that was interrupted.

  The directory holds `config.json`, `policy.json` (but for a float network),
  `metrics.jsonl`, `checkpoints/` and, at the end, `weights.safetensors` as they
  were evaluated, `weights_ema.safetensors` if averages were asked for,
  `finetune.png` and `summary.json`. A training that has ended is read, not
  repeated.

  Args:
    config: see `search_config.default_config`.
    path: the work directory.
    tensorboard: whether to write event files to `tensorboard/` there.

  Returns:
    The policy and the summary.

  Raises:
    ValueError: bad configuration, policy, weights, data, directory or
      checkpoint; all before the first step.
    DivergedError: the loss is not finite.
  """
  compile_cache.enable()
  config = finetune_config.of_finetune(config)
  finetune_config.check_config(config)
  if tensorboard:
    tensorboard_log.check_installed()
  directory = workdir.open_workdir(path, config, write=False)
  if (directory / "summary.json").exists():
    if tensorboard:
      recorded_loop.open_events(directory).close()
    return _read(directory)
  policy = finetune_parts.read_policy(config)
  dataset = data_lib.load(config.data.name, data_dir=config.data.dir or None)
  split = data_lib.Split(dataset.train_images, dataset.train_labels)
  begun = checkpoints.latest_step(directory / "checkpoints") is not None
  made = start(config, policy, dataset, split, begun=begun)
  teacher = finetune_parts.make_teacher(config, dataset.num_classes)
  # Not before: a refused configuration must not claim the directory.
  workdir.open_workdir(path, config)
  if policy is not None:
    _keep_policy(policy, directory)
  state, first = made.state, None
  restored = checkpoints.restore_latest(directory / "checkpoints", state)
  if restored is not None:
    first, state = restored
    logging.info("going on from the checkpoint of step %d", first)
  batches = _batches(config, split, first or 0)
  if teacher is not None:
    batches = finetune.taught(
      batches,
      teacher,
      prepare=search_parts.make_prepare(config, dataset, train=True),
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
  with checkpoints.Checkpoints(directory / "checkpoints") as kept:
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
      ),
      directory,
      first,
      kept.save,
      tensorboard=tensorboard,
    )
    summary = _finish(config, made, state, dataset, split, directory)
  _plot(config, directory)
  # The last file: it marks a training that has ended.
  files.write_text_atomic(
    directory / "summary.json", json.dumps(summary, indent=2) + "\n"
  )
  return Finished(policy, summary)


def start(
  config: ml_collections.ConfigDict,
  policy: policy_lib.Policy | None,
  dataset: data_lib.Dataset,
  split: data_lib.Split,
  *,
  begun: bool = False,
) -> finetune.Training:
  """Build a training that is ready for its first step.

  Args:
    config: from `finetune_config.of_finetune`.
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
  mesh = sharding.data_mesh()
  sharding.check_batch_size(config.batch_size, mesh)
  batches_lib.steps_per_epoch(split, config.batch_size)
  batches_lib.steps_per_epoch(split, config.eval_batch_size)
  raw = batches_lib.batch_at(
    split, 0, batch_size=config.batch_size, seed=config.finetune.seed
  )
  plain = search_parts.make_prepare(config, dataset, train=False)
  images = plain(jax.random.key(0), {"image": jnp.asarray(raw["image"])})
  model = finetune_parts.make_model(
    config, policy, dataset.num_classes, images["image"], begun=begun
  )
  prepare = search_parts.make_prepare(config, dataset, train=True)
  return finetune.start_training(
    model,
    finetune_config.make_loss(config),
    settings=finetune_config.make_settings(config),
    # A teacher needs the images before the step, see `finetune.taught`.
    prepare=None if config.finetune.distillation.weight else prepare,
    mesh=mesh,
  )


def _batches(
  config: ml_collections.ConfigDict, split: data_lib.Split, first: int
) -> Iterator[Any]:
  """Yield this process's raw batches from a step on."""
  for step in range(first, config.finetune.steps):
    yield batches_lib.batch_at(
      split,
      step,
      batch_size=config.batch_size,
      seed=config.finetune.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )


def _finish(
  config: ml_collections.ConfigDict,
  made: finetune.Training,
  state: state_lib.TrainState,
  dataset: data_lib.Dataset,
  split: data_lib.Split,
  directory: pathlib.Path,
) -> dict[str, Any]:
  """Evaluate what was trained on the test images, and keep its weights."""
  prepare = search_parts.make_prepare(config, dataset, train=False)
  report = data_lib.Split(dataset.test_images, dataset.test_labels)

  def settle(averaged: bool) -> tuple[nnx.Module, dict[str, float]]:
    model = finetune.trained_model(made, state, averaged=averaged)
    inputs = evaluate.norm_inputs(
      split,
      prepare,
      batch_size=config.eval_batch_size,
      batches=config.batch_norm_batches,
      seed=config.finetune.seed,
    )
    calibration.reestimate_batch_norm(model, inputs)
    found = evaluate.evaluate(
      model,
      report,
      prepare,
      batch_size=config.eval_batch_size,
      batches=config.report_batches,
    )
    return model, found.figures()

  model, figures = settle(averaged=False)
  pretrained.save_weights(model, directory / trained_runs.WEIGHTS)
  if config.finetune.ema_decay:
    model, averaged = settle(averaged=True)
    pretrained.save_weights(model, directory / trained_runs.AVERAGED_WEIGHTS)
    figures |= {f"ema_{name}": value for name, value in averaged.items()}
  return {
    "data": dataset.name,
    "classes": dataset.num_classes,
    "steps": int(state.step),
    **figures,
  }


def _plot(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
  records = metrics_log.read_metrics(directory / "metrics.jsonl")
  idle = _OF_SEARCH
  if not any("codes_changed" in record for record in records):
    idle += _OF_SECOND_PASS
  shown = [
    {name: x for name, x in record.items() if name not in idle}
    for record in records
  ]
  policy = config.finetune.policy or "float"
  plots.plot_search(
    shown,
    directory / "finetune.png",
    title=f"{config.model} on {config.data.name}, {policy}",
    rho_max=config.finetune.sharpness.rho_max,
  )


def _keep_policy(policy: policy_lib.Policy, directory: pathlib.Path) -> None:
  """Copy the policy; a training goes on at the one that it began with."""
  kept = directory / "policy.json"
  if not kept.exists():
    policy_lib.save(policy, kept)
  elif policy_lib.load(kept).layers != policy.layers:
    raise workdir.WorkdirError(
      f"the policy is not that which the training in {directory} began with,"
      f" {kept}: put that back, or choose another --workdir"
    )


def _read(directory: pathlib.Path) -> Finished:
  logging.info("the training in %s has ended; this is its result", directory)
  policy = None
  if (directory / "policy.json").exists():
    policy = policy_lib.load(directory / "policy.json")
  return Finished(policy, trained_runs.read_summary(directory))


def format_result(finished: Finished) -> str:
  """Lay out a finished training for the terminal."""
  lines = []
  if finished.policy is not None:
    lines += [policy_table.format_table(finished.policy), ""]
  for name, value in finished.summary.items():
    shown = f"{value:.4f}" if isinstance(value, float) else str(value)
    lines.append(f"{name.replace('_', ' ')}: {shown}")
  return "\n".join(lines)
