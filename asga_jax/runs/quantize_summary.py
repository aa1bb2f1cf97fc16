"""What a quantization without training is worth, in figures and in words."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from asga_jax import policy as policy_lib
from asga_jax.report import policy_table, verdict
from asga_jax.runs import quantize_images, read
from asga_jax.scores import intervals, measured, within


def summarise(
  policy: policy_lib.Policy,
  part: quantize_images.Part,
  of_float: Any,
  of_policy: Any,
  of_uniform: Any,
) -> dict[str, Any]:
  """Compare a policy and uniform bits with the float network.

  Args:
    policy: what was chosen.
    part: the images.
    of_float: logits of the float network, shape (images, classes).
    of_policy: likewise of the network at the policy.
    of_uniform: of uniform bits within the budget; None where there are none.

  Returns:
    JSON: accuracies, agreements (the share of images of the same top-1 class
    as in float) and gains over uniform bits as shares, divergences from float
    in nats, 95 % intervals as [low, high]; and `warnings`, a list of sentences.
  """
  classes = within.classes(of_float)
  found = {
    "policy": within.classes(of_policy),
    "uniform": None if of_uniform is None else within.classes(of_uniform),
  }
  summary: dict[str, Any] = {
    "split": part.name,
    "report_images": len(part),
    "classes": int(of_float.shape[-1]),
    "budget": policy.budget,
    "bops": float(policy.cost["bops"]),
    "size_bytes": int(policy.cost["size_bytes"]),
  }
  bound = policy.provenance.get("accuracy_budget")
  if bound is not None:
    summary |= {
      "accuracy_budget": bound,
      "fall": policy.provenance["fall"],
      "fall_interval": policy.provenance["fall_interval"],
      "fall_images": policy.provenance["images_measured"],
      "fall_split": policy.provenance["split"],
    }
  labels = part.labels
  if labels is not None:
    summary["float_accuracy"] = float(np.mean(classes == labels))
    summary |= _against_uniform(found, labels, "accuracy", "gain")
  agreements = _against_uniform(found, classes, "agreement", "agreement_gain")
  summary["agreement"] = agreements.pop("policy_agreement")
  summary |= agreements
  for name, logits in (
    ("divergence", of_policy),
    ("uniform_divergence", of_uniform),
  ):
    summary[name] = None if logits is None else _divergence(of_float, logits)
  return {**summary, "warnings": _warnings(summary)}


def _against_uniform(
  found: Mapping[str, Any], truth: np.ndarray, what: str, gain: str
) -> dict[str, Any]:
  """Compare what is right of the policy and of uniform bits."""
  ours = found["policy"] == truth
  figures = {f"policy_{what}": float(np.mean(ours))}
  names = (f"uniform_{what}", f"{gain}_over_uniform", f"{gain}_interval")
  if found["uniform"] is None:
    return {**figures, **dict.fromkeys(names)}
  theirs = found["uniform"] == truth
  estimate = intervals.difference(ours, theirs)
  values = (
    float(np.mean(theirs)),
    estimate.value,
    [estimate.low, estimate.high],
  )
  return {**figures, **dict(zip(names, values, strict=True))}


def _divergence(of_float: np.ndarray, found: np.ndarray) -> float | None:
  each = measured.kl_divergence(jnp.asarray(of_float), jnp.asarray(found))
  value = float(np.mean(np.asarray(each)))
  return value if math.isfinite(value) else None  # JSON has no NaN


def _warnings(summary: Mapping[str, Any]) -> list[str]:
  shown = verdict.as_accuracy(summary)
  if verdict.beats_uniform(shown) is not False:
    return []
  low, high = (100 * end for end in shown["gain_interval"])
  return [
    "The policy is not shown to be better than uniform bits of the same cost:"
    f" the interval of its gain, {low:+.1f} to {high:+.1f} points, is not above"
    " zero. Try a budget at which uniform bits lose more, more images in the"
    " report, more scored batches (post_training.scored_batches), or policies"
    " that are measured (post_training.evaluations)."
  ]


def sentence(summary: Mapping[str, Any]) -> str:
  """Say whether a policy beats uniform bits, by how much and how surely.

  Args:
    summary: from `summarise`.
  """
  labelled = "float_accuracy" in summary
  what = "accuracy" if labelled else "agreement with the float network"
  shown = verdict.as_accuracy(summary)
  return verdict.sentence(summary) or (
    f"The policy has {100 * shown['policy_accuracy']:.1f} % {what} on"
    f" {summary['report_images']} images; no uniform bits meet the budget."
  )


def format_quantization(finished: read.FinishedQuantization) -> str:
  """Lay out a quantization for the terminal: the table, figures, words."""
  lines = [policy_table.format_table(finished.policy), ""]
  for name, value in finished.summary.items():
    if name == "warnings":
      lines += [f"warning: {text}" for text in value]
      continue
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
      shown = " to ".join(f"{end:.4g}" for end in value)
    lines.append(f"{name.replace('_', ' ')}: {shown}")
  return "\n".join([*lines, "", sentence(finished.summary)])
