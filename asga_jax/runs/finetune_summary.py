"""How a fine-tuning went: accuracies, the weights it leaves, its curves."""

import math
import pathlib
from typing import Any

import ml_collections
from flax import nnx

from asga_jax import data as data_lib
from asga_jax import evaluate, finetune
from asga_jax.quantization import calibration
from asga_jax.report import curves, plots
from asga_jax.runs import build as search_parts
from asga_jax.runs import metrics as metrics_log
from asga_jax.runs import read as trained_runs
from asga_jax.runs import waits
from asga_jax.training import state as state_lib
from asga_jax.weights import load as pretrained


def conclude(
  config: ml_collections.ConfigDict,
  made: finetune.Training,
  state: state_lib.TrainState,
  dataset: data_lib.Dataset,
  split: data_lib.Split,
  directory: pathlib.Path,
) -> dict[str, Any]:
  """Evaluate what was trained on the test images, and keep its weights.

  Args:
    config: of the training.
    made: the training.
    state: after its last step.
    dataset: the data.
    split: its training images; they re-estimate batch norm.
    directory: the work directory; weights go there as they were evaluated.

  Returns:
    JSON: data, classes, steps, and accuracies in [0, 1] and loss of the
    network and, as `ema_...`, of its average; None for what is not finite.
  """
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

  with waits.told("evaluating the network"):
    model, figures = settle(averaged=False)
  pretrained.save_weights(model, directory / trained_runs.WEIGHTS)
  if config.finetune.ema_decay:
    with waits.told("evaluating its average"):
      model, averaged = settle(averaged=True)
    pretrained.save_weights(model, directory / trained_runs.AVERAGED_WEIGHTS)
    figures |= {f"ema_{name}": value for name, value in averaged.items()}
  return {
    "data": dataset.name,
    "classes": dataset.num_classes,
    "steps": int(state.step),
    # JSON has no NaN.
    **{k: x if math.isfinite(x) else None for k, x in figures.items()},
  }


def plot(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
  """Draw the metrics of a training to `finetune.png`."""
  records = metrics_log.read_metrics(directory / "metrics.jsonl")
  policy = config.finetune.policy or "float"
  plots.plot_search(
    curves.of_training(records),
    directory / "finetune.png",
    title=f"{config.model} on {config.data.name}, {policy}",
    rho_max=config.finetune.sharpness.rho_max,
  )
