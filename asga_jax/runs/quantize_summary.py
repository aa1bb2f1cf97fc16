"""What a quantization without training is worth, in figures and in words."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from asga_jax import policy as policy_lib
from asga_jax.report import policy_table
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


def _compared(summary: Mapping[str, Any]) -> tuple[str, str, str]:
  """Name what a policy is compared by, its figure and its gain."""
  if "float_accuracy" in summary:
    return "top-1", "policy_accuracy", "gain"
  return "agreement with the float network", "agreement", "agreement_gain"


def _warnings(summary: Mapping[str, Any]) -> list[str]:
  _, _, gain = _compared(summary)
  interval = summary[f"{gain}_interval"]
  if interval is None or interval[0] > 0:
    return []
  low, high = (100 * end for end in interval)
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
  what, own, gain = _compared(summary)
  images = f"{summary['report_images']} images of {summary['split']}"
  ours = f"{100 * summary[own]:.1f} %"
  if summary[f"{gain}_interval"] is None:
    return (
      f"The policy has {ours} {what} on {images}; no uniform bits meet the"
      " budget."
    )
  points = 100 * summary[f"{gain}_over_uniform"]
  low, high = (100 * end for end in summary[f"{gain}_interval"])
  rival = "uniform bits within the same budget"
  if low > 0:
    claim = f"The policy beats {rival} by {points:.1f} points of {what}"
  elif high < 0:
    claim = f"The policy is {-points:.1f} points of {what} worse than {rival}"
  else:
    claim = (
      f"The policy does not beat {rival}: the difference is {points:+.1f}"
      f" points of {what}"
    )
  theirs = summary[f"uniform_{own.removeprefix('policy_')}"]
  told = (
    f"{claim} (95 % interval {low:+.1f} to {high:+.1f}, on {images}): {ours}"
    f" against {100 * theirs:.1f} %"
  )
  if "float_accuracy" in summary:
    told += (
      f", where the float network has {100 * summary['float_accuracy']:.1f} %"
    )
  return f"{told}."


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
