"""Whether a policy beats uniform bits of the same cost, in words."""

from collections.abc import Mapping
from typing import Any


def beats_uniform(summary: Mapping[str, Any]) -> bool | None:
  """Tell whether the interval of the gain lies above zero.

  Args:
    summary: of `summary.json`; empty for a search that has not ended.

  Returns:
    None where there was nothing to compare with.
  """
  interval = summary.get("gain_interval")
  return None if interval is None else interval[0] > 0


def as_accuracy(summary: Mapping[str, Any]) -> Mapping[str, Any]:
  """Let agreement with float stand where labels, so accuracy, are not known.

  Args:
    summary: of `summary.json`.
  """
  if "agreement" not in summary or "float_accuracy" in summary:
    return summary
  return {
    **summary,
    "policy_accuracy": summary["agreement"],
    "uniform_accuracy": summary["uniform_agreement"],
    "gain_over_uniform": summary["agreement_gain_over_uniform"],
    "gain_interval": summary["agreement_gain_interval"],
  }


def sentence(summary: Mapping[str, Any]) -> str | None:
  """Say how a policy compares with uniform bits of the same cost.

  Args:
    summary: of `summary.json`; empty for a run that has not ended.

  Returns:
    One sentence; None where there was nothing to compare with.
  """
  shown = as_accuracy(summary)
  unit = "points"
  if shown is not summary:
    unit += " of agreement with the float network"
  summary = shown
  beats = beats_uniform(summary)
  if beats is None:
    return None
  gain = 100 * summary["gain_over_uniform"]
  low, high = (100 * end for end in summary["gain_interval"])
  if beats:
    claim = (
      f"The policy beats uniform bits of the same cost by {gain:.1f} {unit}"
    )
  elif high < 0:
    claim = (
      f"The policy is {-gain:.1f} {unit} worse than uniform bits of the same"
      " cost"
    )
  else:
    claim = (
      f"The policy does not beat uniform bits of the same cost: the difference"
      f" is {gain:+.1f} {unit}"
    )
  found = (
    f"{claim} (95 % interval {low:+.1f} to {high:+.1f}, on"
    f" {summary['report_images']} images): {_percent(summary, 'policy')}"
    f" against {_percent(summary, 'uniform')}"
  )
  if summary.get("float_accuracy") is not None:
    found += f", where the float network has {_percent(summary, 'float')}"
  return f"{found}."


def _percent(summary: Mapping[str, Any], name: str) -> str:
  return f"{100 * summary[f'{name}_accuracy']:.1f} %"
