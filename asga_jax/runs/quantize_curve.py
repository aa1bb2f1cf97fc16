"""Accuracy at several costs, of what was quantized without training."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

from asga_jax import every_budget
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.runs import compare, quantize_images, run_files, waits
from asga_jax.scores import within

# From a policy to its network, rounded and corrected as the run's own.
Apply = Callable[[policy_lib.Policy], nnx.Module]


def measure(
  found: result_lib.SearchResult,
  own: policy_lib.Policy,
  part: quantize_images.Part,
  logits: Sequence[np.ndarray | None],
  apply: Apply,
  shares: Sequence[float],
) -> dict[str, Any]:
  """Measure policies and uniform bits within other budgets.

  Args:
    found: its scores choose them.
    own: the policy of the run; budgets are shares of what it costs.
    part: the images.
    logits: of the float network, of `own` and of uniform bits within its
      budget, shape (images, classes); the last None where there are none.
    apply: makes their networks.
    shares: of the cost.

  Returns:
    For `measured.json`; where there are no labels, `what` is agreement with the
    float network.
  """
  of_float, of_own, of_uniform = logits
  assert of_float is not None
  classes = within.classes(of_float)
  truth = classes if part.labels is None else part.labels
  rows = []

  def add(kind: str, policy: policy_lib.Policy, given: Any) -> None:
    if given is not None:
      share = float(np.mean(within.classes(given) == truth))
      cost = compare.first_cost(policy)
      rows.append({"kind": kind, "cost": cost, "accuracy": share})

  add("searched", own, of_own)
  if of_uniform is not None:
    add("uniform", result_lib.uniform_policy(found, own.budget), of_uniform)
  planned = compare.plan(found, own, shares)
  if planned:
    with waits.told(f"measuring {len(planned)} policies within other budgets"):
      for kind, policy in planned:
        add(kind, policy, within.logits(apply(policy), part.inputs))
  cost = compare.first_kind(own)
  labelled = part.labels is not None
  return {
    "schema_version": run_files.MEASURED_VERSION,
    "model": own.model,
    "budget": own.provenance.get("accuracy_budget", own.budget),
    "cost": cost,
    "unit": every_budget.UNITS.get(cost, ""),
    "what": "accuracy" if labelled else "agreement with float",
    "images": len(part),
    "float_accuracy": float(np.mean(classes == truth)) if labelled else None,
    "policies": rows,
  }
