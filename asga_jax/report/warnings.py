"""What is wrong with a search, in words: measured, why it matters, a remedy."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asga_jax import policy as policy_lib
from asga_jax.report import curves, verdict
from asga_jax.report import radius_health as radius_lib

# The thresholds are this project's own; each is a place from which a figure
# has a plain meaning, not one that a measurement has singled out.

# In nats: the perturbation takes a tenth off the (geometric) mean probability
# of the right class, 1 - exp(-0.1). Searches at rho 0.05 end near 0.05.
HIGH_GAP = 0.1
# The end of a search: its last tenth, but enough steps for a mean over batches.
END_SHARE, END_STEPS = 0.1, 10
# Healthy searches have cosines of 0.9 and above; the first steps may differ.
NEGATIVE_COSINE_SHARE = 0.05
# Free in fewer steps than one in ten, an adaptive radius is as good as fixed.
PINNED_SHARE = 0.9
# A pure two-step cycle has -1 and noise 0 with a deviation of 1/sqrt(steps):
# with 20 steps or more, noise is above this by two deviations.
ALTERNATING, ALTERNATING_STEPS = -0.5, 20
# Jumps of less than this share of the mean radius change nothing.
ALTERNATING_RANGE = 0.1
# Of the searched tensors: one exception in twenty is no mixed precision.
COLLAPSED_SHARE = 0.95
# Odds of the likeliest candidate against the unlikeliest; equal ones have 1.
UNMOVED_ODDS = 1.5
# One code in ten thousand: a kernel of 3x3x32x32 then has not one changed.
UNCHANGED_CODES = 1e-4
# Times the share that guessing gets right: on 1,000 images of 10 classes three
# deviations of a guess are 0.3 times that share.
NEAR_CHANCE = 1.5
# Ten points of accuracy: the default search on the embedded proxy loses 4 to
# 10, and three deviations of an accuracy on 1,000 images are 4.7 at most.
HIGH_DISCRETISATION_GAP = 0.1


def find_warnings(
  records: Sequence[Mapping[str, Any]],
  summary: Mapping[str, Any],
  layers: Mapping[str, policy_lib.LayerPolicy],
  *,
  radius: str,
  rho_max: float,
) -> list[str]:
  """Find what is wrong with a search.

  Args:
    records: of `metrics.jsonl`; may be empty.
    summary: of `summary.json`; empty for a search that has not ended.
    layers: of the policy; empty for a search that has not ended.
    radius: 'fixed', or how it adapts: 'adaptive' or 'growing'.
    rho_max: the cap of the radius.

  Returns:
    A sentence or more for each fault; none for a healthy search.
  """
  # Without a perturbation there is no sharpness to speak of.
  perturbed = any("codes_changed" in record for record in records)
  found = [
    high_gap(records) if perturbed else None,
    negative_cosine(records) if perturbed else None,
    adapting(records, radius, rho_max) if perturbed else None,
    unchanged_codes(records) if perturbed else None,
    unmoved_logits(records),
    collapsed(layers),
    discretisation(summary),
    no_better(summary),
  ]
  return [sentence for sentence in found if sentence]


def _known(
  records: Sequence[Mapping[str, Any]], key: str
) -> np.ndarray[Any, np.dtype[np.float64]]:
  values = curves.column(records, key)
  return values[np.isfinite(values)]


def high_gap(records: Sequence[Mapping[str, Any]]) -> str | None:
  """Warn of a surrogate gap that is high at the end."""
  last = max(END_STEPS, math.ceil(END_SHARE * len(records)))
  # Steps without a second pass have none.
  gaps = _known(records, "gap")[-last:]
  if not gaps.size or np.mean(gaps) <= HIGH_GAP:
    return None
  return (
    f"The surrogate gap is {np.mean(gaps):.3g} in the mean of the last "
    f"{gaps.size} steps, above {HIGH_GAP:g}: the weights end in a sharp place, "
    "where rounding them is likely to cost accuracy. Try more steps "
    "(search.steps), or a lower search.learning_rate."
  )


def negative_cosine(records: Sequence[Mapping[str, Any]]) -> str | None:
  """Warn of gradients at both points that oppose each other."""
  cosines = _known(records, "cosine")
  count = int(np.sum(cosines < 0))
  if not cosines.size or count / cosines.size <= NEGATIVE_COSINE_SHARE:
    return None
  return (
    f"The gradients at the weights and at the perturbed weights pointed apart "
    f"(cosine below 0) in {count} of {cosines.size} steps: their mean then "
    "follows neither, and the alignment does not hold. Try a smaller "
    "search.sharpness.rho_max, or a larger batch_size."
  )


def adapting(
  records: Sequence[Mapping[str, Any]], radius: str, rho_max: float
) -> str | None:
  """Warn of an adaptive radius that is pinned at its cap, or alternates."""
  if radius == "fixed":
    return None
  health = radius_lib.radius_health(curves.column(records, "radius"), rho_max)
  if health["share_at_max"] > PINNED_SHARE:
    smaller = "a smaller search.sharpness.phi or " * (radius == "adaptive")
    return (
      f"The radius was at its cap, {rho_max:g}, in "
      f"{100 * health['share_at_max']:.0f} % of the steps: it did not adapt, "
      f"and the search was one of fixed radius. Try {smaller}a larger "
      "search.sharpness.rho_max."
    )
  spread = health["maximum"] - health["minimum"]
  if (
    health["steps"] >= ALTERNATING_STEPS
    and health["lag1_autocorrelation"] < ALTERNATING
    and spread > ALTERNATING_RANGE * health["mean"]
  ):
    return (
      f"The radius jumped to and fro between {health['minimum']:.3g} and "
      f"{health['maximum']:.3g} (lag-1 autocorrelation "
      f"{health['lag1_autocorrelation']:.2f}): it answers to its own effect "
      "instead of to the loss. Try search.sharpness.gap_ema nearer to 1, such "
      "as 0.9."
    )
  return None


def unchanged_codes(records: Sequence[Mapping[str, Any]]) -> str | None:
  """Warn of a perturbation that changes no integer code."""
  shares = _known(records, "codes_changed")
  if not shares.size or np.mean(shares) >= UNCHANGED_CODES:
    return None
  return (
    f"The perturbation changed {100 * np.mean(shares):.2g} % of the integer "
    "codes of the weights: the quantized network hardly noticed it, so "
    "sharpness could not speak for or against any bit-width. Try a larger "
    "search.sharpness.rho_max, or candidates of more bits."
  )


def unmoved_logits(records: Sequence[Mapping[str, Any]]) -> str | None:
  """Warn of logits that stayed nearly equal."""
  spreads = _known(records[-1:], "logit_spread")
  temperatures = _known(records[-1:], "temperature")
  if not spreads.size or not temperatures.size:
    return None
  # Against overflow: beyond this the odds are high enough anyway.
  odds = math.exp(min(float(spreads[0] / temperatures[0]), 50.0))
  if odds >= UNMOVED_ODDS:
    return None
  return (
    f"The logits barely moved: at the end the likeliest candidate of a tensor "
    f"is {odds:.2f} times as likely as the unlikeliest (spread "
    f"{spreads[0]:.2g} at temperature {temperatures[0]:.2g}). The mixture is "
    "still nearly an even one, and log_prob scores tell little. Try more steps "
    "(search.steps), or a larger search.logit_learning_rate."
  )


def collapsed(layers: Mapping[str, policy_lib.LayerPolicy]) -> str | None:
  """Warn of a policy that gives nearly all tensors the same bits."""
  searched = [layer for layer in layers.values() if layer.searched]
  bits = [
    count
    for layer in searched
    for count in (layer.weight_bits, layer.activation_bits)
  ]
  if len(searched) < 2:
    return None
  ((most, times),) = collections.Counter(bits).most_common(1)
  if times / len(bits) < COLLAPSED_SHARE:
    return None
  return (
    f"The policy collapsed to one bit-width: {times} of the {len(bits)} "
    f"searched tensors have {most} bits, as a uniform policy without a search "
    "would. Either the budget leaves no choice or the scores tell no layers "
    "apart. Try another budget, more steps (search.steps), or the other "
    "search.score."
  )


def discretisation(summary: Mapping[str, Any]) -> str | None:
  """Warn of a policy that is far below the mixture that it comes from."""
  gap = summary.get("discretisation_gap")
  if gap is None or gap <= HIGH_DISCRETISATION_GAP:
    return None
  return (
    f"The policy is {100 * gap:.1f} points of accuracy below the mixture of "
    "all candidates that it was chosen from: the search has trained another "
    "network than the one that it chose. Try a lower end of "
    "search.temperature, more steps (search.steps), or training the policy on "
    "before judging it."
  )


def no_better(summary: Mapping[str, Any]) -> str | None:
  """Warn of a policy that does not beat uniform bits of the same cost."""
  if verdict.beats_uniform(summary) is not False:
    return None
  low, high = (100 * end for end in summary["gain_interval"])
  return (
    "The policy is not shown to be better than uniform bits of the same cost: "
    f"the interval of its gain, {low:+.1f} to {high:+.1f} points, is not above "
    "zero. Try trained weights to start from (weights.path, pretrain.steps), "
    "more steps (search.steps), a budget at which uniform bits lose more, or "
    "the other search.score."
  )


def at_chance(summary: Mapping[str, Any]) -> str | None:
  """Warn of a trained network that is no better than guessing."""
  top1, classes = summary.get("top1"), summary.get("classes")
  if top1 is None or not classes or top1 * classes > NEAR_CHANCE:
    return None
  return (
    f"The network gets {100 * top1:.1f} % right, and guessing would get "
    f"{100 / classes:.1f} %: it has learned nothing, or collapsed. Try a lower "
    "finetune.learning_rate, more steps (finetune.steps), trained weights to "
    "start from (finetune.start_from, weights.path), or more bits."
  )
