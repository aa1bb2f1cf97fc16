"""How a run went: accuracies, its health, its pictures and its weights."""

import json
import math
import pathlib
from typing import Any

import ml_collections
import numpy as np
from flax import nnx

from asga_jax import data as data_lib
from asga_jax import evaluate, files, finetune
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.allocation import curve as curve_lib
from asga_jax.quantization import batch_norm, fixing
from asga_jax.report import (
  curves,
  measured_plot,
  plots,
  policy_table,
  verdict,
)
from asga_jax.report import radius_health as radius
from asga_jax.report import warnings as run_warnings
from asga_jax.runs import (
  build,
  compare,
  metrics,
  processes,
  read,
  run_files,
  waits,
)
from asga_jax.training import loop
from asga_jax.training import state as state_lib
from asga_jax.weights import load


def summarise_search(
  config: ml_collections.ConfigDict,
  finished: result_lib.SearchResult,
  policy: policy_lib.Policy,
  curve: curve_lib.ParetoCurve,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
  records: list[dict[str, Any]],
  directory: pathlib.Path,
) -> dict[str, Any]:
  """Evaluate a search on the report split, and summarise its health.

  All policies have the searched weights, and batch norm of the same images.
  The network at the policy is kept in `weights.safetensors`, as evaluated; what
  else was measured in `measured.json`, and its picture is `pareto.png`.

  Args:
    config: of the search.
    finished: the search's result.
    policy: what was chosen.
    curve: its cost and unit are those of the picture.
    dataset: the proxy.
    splits: its parts.
    records: of `metrics.jsonl`.
    directory: the work directory.

  Returns:
    JSON: accuracies in [0, 1] of the float network, of uniform bits within the
    budget, of the policy and of the mixture; the policy's gain over uniform
    bits and its 95 % interval; the discretisation gap (mixture minus policy),
    the share of steps at the largest radius, the radius's lag-1
    autocorrelation, and `warnings`, a list of sentences.
  """
  judge = compare.make_judge(config, dataset, splits)
  bits = compare.bits_of(policy)
  of_float = compare.judge_float(config, directory, dataset.num_classes, judge)
  with waits.told("evaluating the mixture of all bits"):
    of_mixture = float(np.mean(judge(finished.model)))
  # Of the mixture's structure, so that all bits share one compilation.
  at_policy = fixing.select_bits(finished.model, bits)
  with waits.told("evaluating the policy", first=False):
    correct = judge(at_policy)
  if processes.first():
    whole = fixing.fix_bits(at_policy, bits)
    load.save_weights(whole, directory / read.WEIGHTS)
  of_policy = float(np.mean(correct))
  gain, rows = compare.compare(finished, policy, correct, judge)
  measured = {
    "schema_version": run_files.MEASURED_VERSION,
    "model": policy.model,
    "budget": policy.budget,
    "cost": curve.cost,
    "unit": curve.unit,
    "images": len(correct),
    "float_accuracy": of_float,
    "policies": rows,
  }
  if processes.first():
    files.write_text_atomic(
      directory / run_files.MEASURED, json.dumps(measured, indent=2) + "\n"
    )
    measured_plot.plot_measured(measured, directory / "pareto.png")
  summary = {
    "float_accuracy": of_float,
    **gain,
    "policy_accuracy": of_policy,
    "report_images": len(correct),
    "mixture_accuracy": of_mixture,
    "discretisation_gap": of_mixture - of_policy,
    "final_logit_spread": records[-1]["logit_spread"],
    **_sharpness_figures(config, records),
  }
  warnings = run_warnings.find_warnings(
    records,
    summary,
    policy.layers,
    radius=run_files.radius_kind(config.search),
    rho_max=config.search.sharpness.rho_max,
  )
  return {**summary, "warnings": warnings}


def _sharpness_figures(
  config: ml_collections.ConfigDict, records: list[dict[str, Any]]
) -> dict[str, Any]:
  """Summarise what a second pass measured; nothing where there was none."""
  if "codes_changed" not in records[0]:
    return {}

  def column(name: str) -> np.ndarray:
    found = [record[name] for record in records]
    return np.array([value for value in found if value is not None])

  health = radius.radius_health(
    [record["radius"] for record in records], config.search.sharpness.rho_max
  )
  return {
    "mean_gap": float(np.mean(column("gap"))),
    "mean_cosine": float(np.mean(column("cosine"))),
    "share_of_steps_with_negative_cosine": float(np.mean(column("cosine") < 0)),
    "mean_share_of_codes_changed": float(np.mean(column("codes_changed"))),
    **{
      f"radius_{name}": value if np.isfinite(value) else None
      for name, value in health.items()
    },
  }


def plot_search(
  config: ml_collections.ConfigDict,
  policy: policy_lib.Policy,
  records: list[loop.Record],
  directory: pathlib.Path,
) -> None:
  """Draw a search's policy and its metrics: `policy.png`, `search.png`."""
  plots.plot_policy(
    policy.layers,
    directory / "policy.png",
    model=policy.model,
    budget=policy.budget,
    budget_used=float(policy.cost["budget_used"]),
    convention=str(policy.cost["bops_convention"]),
  )
  rho_max = config.search.sharpness.rho_max
  plots.plot_search(records, directory / "search.png", rho_max=rho_max)


def summarise_finetuning(
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
  prepare = build.make_prepare(config, dataset, train=False)
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
    batch_norm.reestimate_batch_norm(model, inputs)
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
  if processes.first():
    load.save_weights(model, directory / read.WEIGHTS)
  if config.finetune.ema_decay:
    with waits.told("evaluating its average"):
      model, averaged = settle(averaged=True)
    if processes.first():
      load.save_weights(model, directory / read.AVERAGED_WEIGHTS)
    figures |= {f"ema_{name}": value for name, value in averaged.items()}
  return {
    "data": dataset.name,
    "classes": dataset.num_classes,
    "steps": int(state.step),
    # JSON has no NaN.
    **{k: x if math.isfinite(x) else None for k, x in figures.items()},
  }


def plot_finetuning(
  config: ml_collections.ConfigDict, directory: pathlib.Path
) -> None:
  """Draw the metrics of a training to `finetune.png`."""
  records = metrics.read_metrics(directory / "metrics.jsonl")
  policy = config.finetune.policy or "float"
  plots.plot_search(
    curves.of_training(records),
    directory / "finetune.png",
    title=f"{config.model} on {config.data.name}, {policy}",
    rho_max=config.finetune.sharpness.rho_max,
  )


def format_search(finished: read.FinishedSearch) -> str:
  """Lay out a finished search for the terminal: the table and the summary."""
  lines = [policy_table.format_table(finished.policy), ""]
  for name, value in finished.summary.items():
    if name == "warnings":
      lines += [f"warning: {sentence}" for sentence in value]
      continue
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
      shown = " to ".join(f"{end:.4g}" for end in value)
    lines.append(f"{name.replace('_', ' ')}: {shown}")
  told = verdict.sentence(finished.summary)
  return "\n".join([*lines, *(["", told] if told else [])])


def format_finetuning(finished: read.FinishedFinetuning) -> str:
  """Lay out a finished training for the terminal."""
  lines = []
  if finished.policy is not None:
    lines += [policy_table.format_table(finished.policy), ""]
  for name, value in finished.summary.items():
    shown = f"{value:.4f}" if isinstance(value, float) else str(value)
    lines.append(f"{name.replace('_', ' ')}: {shown}")
  return "\n".join(lines)
