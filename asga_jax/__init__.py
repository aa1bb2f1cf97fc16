"""Mixed-precision quantization policies by sharpness-aware search."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from asga_jax.allocation.curve import ParetoCurve as ParetoCurve
  from asga_jax.allocation.curve import load as load_pareto
  from asga_jax.allocation.curve import save as save_pareto
  from asga_jax.conversion import quantize as quantize
  from asga_jax.conversion import searchable as searchable
  from asga_jax.conversion import with_policy as with_policy
  from asga_jax.cost.costs import Cost as Cost
  from asga_jax.cost.costs import container_cost as container_cost
  from asga_jax.cost.latency_table import latency_cost as latency_cost
  from asga_jax.cost.latency_table import load_latency as load_latency
  from asga_jax.deploy.formats import export_onnx as export_onnx
  from asga_jax.deploy.packing import load_packed as load_packed
  from asga_jax.deploy.packing import save_packed as save_packed
  from asga_jax.deploy.stablehlo import export_stablehlo as export_stablehlo
  from asga_jax.every_budget import pareto as pareto
  from asga_jax.every_budget import policy_at as policy_at
  from asga_jax.finetune import FinetuneSettings as FinetuneSettings
  from asga_jax.finetune import train_policy as train_policy
  from asga_jax.policy import Policy as Policy
  from asga_jax.policy import load as load_policy
  from asga_jax.policy import save as save_policy
  from asga_jax.quantization.batch_norm import (
    reestimated as reestimate_batch_norm,
  )
  from asga_jax.quantization.correction import correct_bias as correct_bias
  from asga_jax.quantization.remembered import format_rules as format_rules
  from asga_jax.quantization.remembered import layer_stats as layer_stats
  from asga_jax.quantization.remembered import not_searched as not_searched
  from asga_jax.quantization.rounding import round_weights as round_weights
  from asga_jax.quantization.rules import Rule as Rule
  from asga_jax.result import SearchResult as SearchResult
  from asga_jax.result import allocate as allocate
  from asga_jax.runs.read import load_run as load_run
  from asga_jax.runs.report import write_report as write_report
  from asga_jax.scores.choice import improve_policy as improve_policy
  from asga_jax.scores.fitted import fit_scores as fit_scores
  from asga_jax.scores.measured import measure_scores as measure_scores
  from asga_jax.scores.post_training import PostTraining as PostTraining
  from asga_jax.scores.post_training import (
    quantize_post_training as quantize_post_training,
  )
  from asga_jax.scores.within import PolicyWithin as PolicyWithin
  from asga_jax.scores.within import policy_within as policy_within
  from asga_jax.search import finish_search as finish_search
  from asga_jax.search import search_policy as search_policy
  from asga_jax.search import start_search as start_search
  from asga_jax.sharpness import ascent_point as ascent_point
  from asga_jax.sharpness import asga_transform as asga_transform
  from asga_jax.sharpness import diagnostics as diagnostics
  from asga_jax.sharpness import gsam as gsam
  from asga_jax.sharpness import sagm as sagm
  from asga_jax.sharpness import sam as sam
  from asga_jax.training.losses import cross_entropy as cross_entropy
  from asga_jax.training.losses import make_loss as make_loss
  from asga_jax.training.search_settings import SearchSettings as SearchSettings
  from asga_jax.weights.load import load_weights as load_weights
  from asga_jax.weights.load import save_weights as save_weights

# Each public name is imported when it is first used: whoever wants the
# optimizer alone does not wait for plots, data sets and checkpoints.
_PLACES = {
  "Cost": "cost.costs",
  "FinetuneSettings": "finetune",
  "ParetoCurve": "allocation.curve",
  "Policy": "policy",
  "PolicyWithin": "scores.within",
  "PostTraining": "scores.post_training",
  "Rule": "quantization.rules",
  "SearchResult": "result",
  "SearchSettings": "training.search_settings",
  "allocate": "result",
  "ascent_point": "sharpness",
  "asga_transform": "sharpness",
  "container_cost": "cost.costs",
  "correct_bias": "quantization.correction",
  "cross_entropy": "training.losses",
  "diagnostics": "sharpness",
  "export_onnx": "deploy.formats",
  "export_stablehlo": "deploy.stablehlo",
  "finish_search": "search",
  "format_rules": "quantization.remembered",
  "gsam": "sharpness",
  "improve_policy": "scores.choice",
  "latency_cost": "cost.latency_table",
  "layer_stats": "quantization.remembered",
  "load_latency": "cost.latency_table",
  "load_packed": "deploy.packing",
  "load_pareto": "allocation.curve:load",
  "load_policy": "policy:load",
  "load_run": "runs.read",
  "load_weights": "weights.load",
  "make_loss": "training.losses",
  "fit_scores": "scores.fitted",
  "measure_scores": "scores.measured",
  "not_searched": "quantization.remembered",
  "pareto": "every_budget",
  "policy_at": "every_budget",
  "policy_within": "scores.within",
  "quantize": "conversion",
  "quantize_post_training": "scores.post_training",
  "reestimate_batch_norm": "quantization.batch_norm:reestimated",
  "round_weights": "quantization.rounding",
  "sagm": "sharpness",
  "sam": "sharpness",
  "save_packed": "deploy.packing",
  "save_pareto": "allocation.curve:save",
  "save_policy": "policy:save",
  "save_weights": "weights.load",
  "search_policy": "search",
  "searchable": "conversion",
  "start_search": "search",
  "train_policy": "finetune",
  "with_policy": "conversion",
  "write_report": "runs.report",
}
__all__ = [
  "Cost",
  "FinetuneSettings",
  "ParetoCurve",
  "Policy",
  "PolicyWithin",
  "PostTraining",
  "Rule",
  "SearchResult",
  "SearchSettings",
  "allocate",
  "ascent_point",
  "asga_transform",
  "container_cost",
  "correct_bias",
  "cross_entropy",
  "diagnostics",
  "export_onnx",
  "export_stablehlo",
  "finish_search",
  "fit_scores",
  "format_rules",
  "gsam",
  "improve_policy",
  "latency_cost",
  "layer_stats",
  "load_latency",
  "load_packed",
  "load_pareto",
  "load_policy",
  "load_run",
  "load_weights",
  "make_loss",
  "measure_scores",
  "not_searched",
  "pareto",
  "policy_at",
  "policy_within",
  "quantize",
  "quantize_post_training",
  "reestimate_batch_norm",
  "round_weights",
  "sagm",
  "sam",
  "save_packed",
  "save_pareto",
  "save_policy",
  "save_weights",
  "search_policy",
  "searchable",
  "start_search",
  "train_policy",
  "with_policy",
  "write_report",
]


def __getattr__(name: str) -> Any:
  if name not in _PLACES:
    # A room, such as asga_jax.cost.
    if importlib.util.find_spec(f"{__name__}.{name}") is None:
      raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
  module, _, attribute = _PLACES[name].partition(":")
  found = importlib.import_module(f"{__name__}.{module}")
  value = globals()[name] = getattr(found, attribute or name)
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
