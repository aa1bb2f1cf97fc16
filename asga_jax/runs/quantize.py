"""One quantization without training: weights, images and a budget in."""

import dataclasses
import json
import pathlib

import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from asga_jax import files
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.cost import budget as budget_lib
from asga_jax.deploy import formats as export_formats
from asga_jax.report import measured_plot, plots
from asga_jax.runs import (
  build,
  config_rules,
  export,
  lock,
  quantize_config,
  quantize_curve,
  quantize_images,
  quantize_summary,
  read,
  report,
  run_files,
  waits,
  workdir,
)
from asga_jax.scores import post_training, within
from asga_jax.weights import files as weight_files
from asga_jax.weights import load

SCORES, NETWORK = "scores.json", "network.onnx"
# Of a budget by accuracy, before it is found: whatever a policy costs.
_ANY = "bops=100%"


def run_quantization(
  config: ml_collections.ConfigDict, path: str | pathlib.Path
) -> read.FinishedQuantization:
  """Quantize a trained network without training, or go on with that.

  The directory holds `config.json`, `scores.json` (kept while they are
  measured; those of gradients are not), then `policy.json`, `policy.png`,
  `weights.safetensors`, `network.onnx` and `summary.json`, and at the end
  `pareto.png` of other budgets, its figures, `measured.json`, and
  `report.html`. A run that has ended is read, not repeated.

  Args:
    config: see `config_lib.default_config`.
    path: the work directory.

  Returns:
    The policy and the summary.

  Raises:
    ValueError: bad configuration, weights, images, budget or directory, before
      anything is measured; a budget by accuracy that no policy reaches, when
      scores have been kept.
  """
  config = quantize_config.of_quantize(config)
  quantize_config.check(config)
  directory = workdir.open_workdir(path, config, write=False)
  wanted = ["summary.json"]
  if config.post_training.curve:
    wanted.append(run_files.MEASURED)
  if all((directory / name).exists() for name in wanted):
    return read.read_finished_quantization(directory)
  with lock.hold(directory):
    return _quantize(config, directory)


def _quantize(
  config: ml_collections.ConfigDict, directory: pathlib.Path
) -> read.FinishedQuantization:
  """Run what is left, in a directory that is held."""
  bounded = within.is_accuracy(config.budget)
  costs = () if bounded else build.make_costs(config)
  export.check_output("onnx", directory / NETWORK)
  network = _load_network(config)
  images = quantize_images.read(config)
  if bounded:
    within.check_split(
      within.parse(config.budget),
      len(images.bounded),
      labelled=images.bounded.labels is not None,
      split=images.bounded.name,
    )
  # Not before: a refused configuration must not claim the directory.
  workdir.open_workdir(directory, config)
  workdir.check_table(config, directory)
  workdir.keep_table(config, directory)
  scores = pathlib.Path(config.post_training.scores or directory / SCORES)
  made = post_training.quantize_post_training(
    network,
    images.batches,
    budget=_ANY if bounded else config.budget,
    bits=tuple(config.bits),
    end_bits=config.end_bits,
    rules=config_rules.make_rules(config),
    deployed=build.make_deployed(config),
    weight_quantizer=config.weight_quantizer,
    activation_quantizer=config.activation_quantizer,
    per_channel=config.per_channel,
    tie_shared_inputs=config.tie_shared_inputs,
    score=config.post_training.score,
    scored=config.post_training.scored_batches,
    evaluations=config.post_training.evaluations,
    costs=costs,
    model_name=config.model,
    cache=scores,
  )
  # Those of gradients are not kept.
  if scores != directory / SCORES and scores.exists():
    files.write_bytes_atomic(directory / SCORES, scores.read_bytes())
  policy, model = made.policy, made.model
  if bounded:
    policy, model, *_ = _within(config, made.result, network, images, scores)
  crop = config.post_training.crop
  policy = dataclasses.replace(
    policy,
    provenance={
      **policy.provenance,
      "images": config.post_training.source or config.data.name,
      # That of the images just named, where they have one of their own.
      **({"calibration_crop": crop} if crop else {}),
      **build.preprocessing(config),
      "config_sha256": workdir.config_sha256(config),
    },
  )
  uniform = _uniform(made.result, policy, network, images)
  logits = _logits(images.tested, network, model, uniform)
  figures = quantize_summary.summarise(policy, images.tested, *logits)
  _write(config, policy, model, figures, directory)
  measured = quantize_curve.measure(
    made.result,
    policy,
    images.tested,
    logits,
    lambda other: post_training.apply_policy(
      made.result.model, other, images.batches, reference=network
    ),
    config.post_training.curve,
  )
  measured_plot.plot_measured(measured, directory / "pareto.png")
  # It marks a run that has ended.
  files.write_text_atomic(
    directory / run_files.MEASURED, json.dumps(measured, indent=2) + "\n"
  )
  report.write_report([directory])
  return read.FinishedQuantization(policy, figures)


def _load_network(config: ml_collections.ConfigDict) -> nnx.Module:
  """Make the trained float network; its classes are those of its weights."""
  classes = config.deployed.num_classes
  try:
    network = build.make_network(config, classes)
  except weight_files.WeightsError as error:
    raise weight_files.WeightsError(
      f"{error}\n  the network has {classes} classes, as"
      " config.deployed.num_classes says; expected those of the weights"
    ) from error
  network.eval()
  return network


def _within(
  config: ml_collections.ConfigDict,
  result: result_lib.SearchResult,
  network: nnx.Module,
  images: quantize_images.Images,
  scores: pathlib.Path,
) -> within.PolicyWithin:
  """Find the policy of a budget by accuracy; an error says what is kept."""
  try:
    return within.policy_within(
      result,
      network,
      budget=config.budget,
      batches=images.batches,
      inputs=images.bounded.inputs,
      labels=images.bounded.labels,
      split=images.bounded.name,
    )
  except ValueError as error:
    if not scores.exists():
      raise
    raise type(error)(
      f"{error} The scores are kept: --config.post_training.scores={scores}"
      " beside another budget and --workdir goes on from them."
    ) from error


def _uniform(
  result: result_lib.SearchResult,
  policy: policy_lib.Policy,
  network: nnx.Module,
  images: quantize_images.Images,
) -> nnx.Module | None:
  """Give the network uniform bits within the budget, and the treatment."""
  try:
    uniform = result_lib.uniform_policy(result, policy.budget)
  except budget_lib.InfeasibleBudgetError as error:
    logging.warning("the policy is not compared with uniform bits: %s", error)
    return None
  logging.info("uniform bits within the budget, for comparison")
  return post_training.apply_policy(
    result.model, uniform, images.batches, reference=network
  )


def _logits(
  part: quantize_images.Part, *networks: nnx.Module | None
) -> list[np.ndarray | None]:
  """Run networks, where there are any, on the same images."""
  with waits.told(f"running {len(part)} images of {part.name}"):
    return [
      None if network is None else within.logits(network, part.inputs)
      for network in networks
    ]


def _write(
  config: ml_collections.ConfigDict,
  policy: policy_lib.Policy,
  model: nnx.Module,
  figures: dict,
  directory: pathlib.Path,
) -> None:
  """Write policy, picture, weights and network; the summary last."""
  policy_lib.save(policy, directory / "policy.json")
  plots.plot_policy(
    policy.layers,
    directory / "policy.png",
    model=policy.model,
    budget=policy.budget,
    budget_used=float(policy.cost["budget_used"]),
    convention=str(policy.cost["bops_convention"]),
  )
  load.save_weights(model, directory / read.WEIGHTS)
  shape = tuple(build.example_shape(config))
  deployable = export_formats.Deployable(model, policy, shape, config.model)
  with waits.told("writing the ONNX file"):
    export.write_network(deployable, "onnx", directory / NETWORK)
  # Others open the directory by it.
  files.write_text_atomic(
    directory / "summary.json", json.dumps(figures, indent=2) + "\n"
  )
