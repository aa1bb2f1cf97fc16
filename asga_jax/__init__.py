"""Mixed-precision quantization policies by sharpness-aware search."""

from asga_jax.allocation.curve import ParetoCurve as ParetoCurve
from asga_jax.allocation.curve import load as load_pareto
from asga_jax.allocation.curve import save as save_pareto
from asga_jax.conversion import format_rules as format_rules
from asga_jax.conversion import layer_stats as layer_stats
from asga_jax.conversion import not_searched as not_searched
from asga_jax.conversion import quantize as quantize
from asga_jax.conversion import searchable as searchable
from asga_jax.conversion import with_policy as with_policy
from asga_jax.cost.costs import Cost as Cost
from asga_jax.cost.costs import container_size as container_size
from asga_jax.cost.latency_table import latency as latency
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
from asga_jax.quantization.rules import Rule as Rule
from asga_jax.result import SearchResult as SearchResult
from asga_jax.result import allocate as allocate
from asga_jax.runs.report import write_report as write_report
from asga_jax.search import SearchSettings as SearchSettings
from asga_jax.search import finish as finish
from asga_jax.search import search_policy as search_policy
from asga_jax.search import start_search as start_search
from asga_jax.sharpness import ascent_point as ascent_point
from asga_jax.sharpness import asga_transform as asga_transform
from asga_jax.sharpness import diagnostics as diagnostics
from asga_jax.sharpness import preset as preset
from asga_jax.training.losses import make_loss as make_loss
from asga_jax.training.steps import cross_entropy as cross_entropy
from asga_jax.weights.load import load_weights as load_weights
from asga_jax.weights.load import save_weights as save_weights

__all__ = [
  "Cost",
  "FinetuneSettings",
  "ParetoCurve",
  "Policy",
  "Rule",
  "SearchResult",
  "SearchSettings",
  "allocate",
  "ascent_point",
  "asga_transform",
  "container_size",
  "cross_entropy",
  "diagnostics",
  "export_onnx",
  "export_stablehlo",
  "finish",
  "format_rules",
  "latency",
  "layer_stats",
  "load_latency",
  "load_packed",
  "load_pareto",
  "load_policy",
  "load_weights",
  "make_loss",
  "not_searched",
  "pareto",
  "policy_at",
  "preset",
  "quantize",
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
