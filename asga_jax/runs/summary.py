"""How a search went: accuracies on the report split, and its health."""

from typing import Any

import ml_collections
import numpy as np
from flax import nnx

from asga_jax import data as data_lib
from asga_jax import evaluate
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.quantization import calibration, surgery
from asga_jax.report import radius_health as radius
from asga_jax.report import warnings as run_warnings
from asga_jax.runs import build as search_parts
from asga_jax.runs import run_files, waits


def summarise(
  config: ml_collections.ConfigDict,
  finished: result_lib.SearchResult,
  policy: policy_lib.Policy,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
  records: list[dict[str, Any]],
) -> dict[str, Any]:
  """Evaluate mixture and policy on the report split, and the search's health.

  Args:
    config: of the search.
    finished: the search's result.
    policy: what was chosen.
    dataset: the proxy.
    splits: its parts.
    records: of `metrics.jsonl`.

  Returns:
    JSON: accuracies in [0, 1], the discretisation gap (mixture minus policy),
    the share of steps at the largest radius, the radius's lag-1
    autocorrelation, and `warnings`, a list of sentences.
  """
  prepare = search_parts.make_prepare(config, dataset, train=False)

  def accuracy(model: nnx.Module) -> float:
    inputs = evaluate.norm_inputs(
      splits.train,
      prepare,
      batch_size=config.eval_batch_size,
      batches=config.batch_norm_batches,
      seed=config.search.seed,
    )
    calibration.reestimate_batch_norm(model, inputs)
    return evaluate.accuracy(
      model,
      splits.report,
      prepare,
      batch_size=config.eval_batch_size,
      batches=config.report_batches,
    )

  bits = {
    path: (layer.weight_bits, layer.activation_bits)
    for path, layer in policy.layers.items()
  }
  with waits.told("evaluating the mixture of all bits"):
    of_mixture = accuracy(finished.model)
  with waits.told("evaluating the policy"):
    of_policy = accuracy(surgery.select_bits(finished.model, bits))
  summary = {
    "mixture_accuracy": of_mixture,
    "policy_accuracy": of_policy,
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
