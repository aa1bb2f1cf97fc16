"""Budgets by accuracy: the cheapest policy that keeps to what is asked."""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax import nnx

from asga_jax import checks
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.network import arguments, examples
from asga_jax.scores import intervals, post_training
from asga_jax.training import progress as progress_lib

_FORMS = (
  "expected drop=0.5% (points of top-1 below the float network) or agree=99%"
  " (top-1 as in the float network)"
)
# Costs of the last two policies that are told apart, as a ratio.
_CLOSE = 1.02


class AccuracyBudget(NamedTuple):
  """How far the network at its policy may differ from the float one."""

  kind: str  # 'drop' or 'agree'
  fall: float  # what is lost at most, a share

  def __str__(self):
    amount = self.fall if self.kind == "drop" else 1 - self.fall
    return f"{self.kind}={100 * amount:.6g}%"


class PolicyWithin(NamedTuple):
  """The cheapest policy that was found within a budget by accuracy."""

  policy: policy_lib.Policy
  # At the policy, with the named treatment, in evaluation mode.
  model: nnx.Module
  # What it loses: of top-1, or of agreement.
  fall: intervals.Estimate
  # All that was measured: BOPs of a policy, and what it loses.
  measured: tuple[tuple[int, intervals.Estimate], ...]


def is_accuracy(budget: str) -> bool:
  """Tell whether a budget is meant to be one by accuracy."""
  return re.match(r"\s*(drop|agree)\b", budget) is not None


def parse(text: str) -> AccuracyBudget:
  """Read 'drop=0.5%' or 'agree=99%'; raises ValueError for others."""
  checks.text("budget", text, "drop=0.5% or agree=99%")
  match = re.fullmatch(
    r"\s*(?:(drop)\s*<?=|(agree)\s*>?=)\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*",
    text,
    re.ASCII,
  )
  if not match:
    raise ValueError(f"budget {text[:80]!r}: {_FORMS}.")
  share = float(match[3]) / 100
  if not 0 < share < 1:
    raise ValueError(
      f"budget {text[:80]!r}: {_FORMS}, above 0 % and below 100 %."
    )
  if match[1]:
    return AccuracyBudget("drop", share)
  return AccuracyBudget("agree", 1 - share)


def check_split(
  budget: AccuracyBudget, images: int, *, labelled: bool, split: str
) -> None:
  """Check before long work that a split can tell what is asked.

  Args:
    budget: what is asked.
    images: how many the split has.
    labelled: whether it has labels.
    split: its name.

  Raises:
    ValueError: no labels where they are needed, or too few images even if the
      networks agree on each.
  """
  if budget.kind == "drop" and not labelled:
    raise ValueError(
      f"budget '{budget}': {split} has no labels, by which top-1 is counted;"
      " expected labelled images, or a budget such as agree=99%, which needs"
      " none."
    )
  if not images:
    raise ValueError(f"budget '{budget}': {split} is empty; expected images.")
  same = np.ones(images, bool)
  fall = _fall(budget, same, same)
  if fall.half_width > budget.fall:
    raise ValueError(
      f"budget '{budget}': the {images} images of {split} would tell what is"
      f" lost only to within {100 * fall.half_width:.2f} points; expected about"
      f" {fall.images_for(budget.fall)} images, or a budget that allows more."
    )


def policy_within(
  result: result_lib.SearchResult,
  reference: nnx.Module,
  *,
  budget: str,
  batches: Iterable[Any],
  inputs: Iterable[Any],
  labels: Any = None,
  split: str = "inputs",
  progress: bool = True,
) -> PolicyWithin:
  """Find the cheapest policy that loses no more than is asked, by measurement.

  By bisection over budgets of BOPs: at each, the exact optimum for the scores
  is treated by `round_weights` and `correct_bias`, and measured on the inputs
  against the float network. All policies share one compilation. A warning says
  where half the interval's width exceeds what is asked.

  Args:
    result: its scores choose the policies: of `quantize_post_training` or
      `measure_scores`.
    reference: the trained float network.
    budget: 'drop=0.5%', top-1 at most half a point below the float network's,
      or 'agree=99%', the same top-1 class on so many inputs at least.
    batches: inputs for both, a few hundred, in batches of one size.
    inputs: what is measured on, none of the batches, in batches of one size.
    labels: the class of each input, in their order; only a drop needs them.
    split: what messages and the policy call the inputs.
    progress: whether to show the policies that are measured, with time left.

  Returns:
    The policy and its network, and what they lose, with a 95 % interval. (The
    policy was chosen on these inputs: on others it loses a little more in the
    mean.)

  Raises:
    InfeasibleBudgetError: no policy loses so little; it says what was reached.
    ValueError: a malformed budget, no labels where a drop is asked, or inputs
      too few for any policy: half the interval's width would exceed what is
      asked if no input differed. It says how many would do.
  """
  result_lib.check(result)
  arguments.check_module(reference)
  asked = parse(budget)
  checks.text("split", split, "a name of the inputs")
  checks.flag("progress", progress)
  raw = [example.given for example in examples.each_of(batches)]
  tested = [example.given for example in examples.each_of(inputs, "inputs")]
  known = _labels(labels)
  count = sum(examples.as_example(each).batch() for each in tested)
  check_split(asked, count, labelled=known is not None, split=split)
  if known is not None and known.shape != (count,):
    raise ValueError(
      f"labels has the shape {known.shape}; expected ({count},), one class for"
      " each input."
    )
  of_float = classes(logits(reference, tested))
  # Of no labels, agreement: the float network's classes stand for them.
  truth = of_float if asked.kind == "agree" or known is None else known
  measured: dict[int, intervals.Estimate] = {}

  def measure(text: str) -> tuple[policy_lib.Policy, Any, intervals.Estimate]:
    policy = result_lib.allocate(result, budget=text, min_use=0)
    model = post_training.apply_policy(
      result.model, policy, raw, reference=reference
    )
    fall = _fall(
      asked, of_float == truth, classes(logits(model, tested)) == truth
    )
    bops = int(policy.cost["bops"])
    measured[bops] = fall
    logging.info("%s: at %.4g BOPs it loses %s", asked, bops, fall.percent())
    return policy, model, fall

  logging.info("%s: some ten policies are measured on %d images", asked, count)
  best, model, fall = measure("bops=100%")
  if not _meets(fall, asked):
    raise budget_lib.InfeasibleBudgetError(
      f"budget '{asked}': the most accurate policy, of {best.cost['bops']:.4g}"
      f" BOPs, loses {fall.percent()} on the {count} images of {split};"
      f" expected a budget from {_reachable(asked, fall)} on, or more candidate"
      " bits."
    )
  low, high = _lowest_bops(result), int(best.cost["bops"])
  with _shown(low, high) if progress else contextlib.nullcontext() as shown:
    while high > low * _CLOSE:
      middle = math.isqrt(low * high)
      tried = measure(f"bops={middle}")
      if shown is not None:
        shown.update(len(measured))
      if _meets(tried[2], asked):
        best, model, fall = tried
        high = int(best.cost["bops"])
      else:
        low = middle
  if fall.half_width > asked.fall:
    logging.warning(
      "%s: %d images tell what is lost only to within %.2f points; about %d"
      " would tell what is asked",
      asked,
      count,
      100 * fall.half_width,
      fall.images_for(asked.fall),
    )
  provenance = {
    "accuracy_budget": str(asked),
    "treatment": "round_weights, correct_bias",
    "split": split,
    "images_measured": count,
    "fall": fall.value,
    "fall_interval": [fall.low, fall.high],
  }
  return PolicyWithin(
    dataclasses.replace(best, provenance={**best.provenance, **provenance}),
    model,
    fall,
    tuple(sorted(measured.items())),
  )


def _labels(given: Any) -> np.ndarray | None:
  """Read labels; raises ValueError for what are no whole numbers."""
  if given is None:
    return None
  try:
    found = np.asarray(given)
  except (TypeError, ValueError):
    found = np.empty(0)
  if found.dtype.kind not in "iu":
    raise checks.refusal(
      "labels", given, "whole numbers, a class each, or None"
    )
  return found


def _shown(low: int, high: int) -> progress_lib.Progress:
  """Show policies; between these costs at most so many are measured."""
  halvings = math.log2(max(1.0, math.log(high / low) / math.log(_CLOSE)))
  total = 1 + math.ceil(halvings)
  return progress_lib.Progress(total, initial=1, label="policies")


def _fall(
  budget: AccuracyBudget, of_float: np.ndarray, found: np.ndarray
) -> intervals.Estimate:
  """Estimate what is lost of right answers, or of agreement."""
  if budget.kind == "drop":
    return intervals.difference(of_float, found)
  return intervals.share(~found)


def _meets(fall: intervals.Estimate, asked: AccuracyBudget) -> bool:
  # A share of images and one of 100 %, neither of which floats hold exactly.
  return fall.value <= asked.fall + 1e-9


def _reachable(budget: AccuracyBudget, fall: intervals.Estimate) -> str:
  """Write the tightest budget that was met, rounded to what it allows."""
  lost = math.ceil(1e4 * fall.value - 1e-6) / 1e4
  return str(budget._replace(fall=lost))


def _lowest_bops(result: result_lib.SearchResult) -> int:
  space = result.space
  lowest = {
    path: (min(choice.weight_bits), min(choice.activation_bits))
    for path, choice in space.choices.items()
  }
  return int(costs_lib.total_cost(space.network, lowest, costs_lib.BOPS))


def logits(model: nnx.Module, inputs: Iterable[Any]) -> np.ndarray:
  """Run a network, in evaluation mode; compiled once a structure.

  Args:
    model: of inputs to logits; it is not changed.
    inputs: in batches of one size, the last may be smaller.

  Returns:
    Of all inputs, shape (inputs, classes).
  """
  model = nnx.clone(model)
  model.eval()
  graphdef, state = nnx.split(model)
  found = []
  size = 0
  for given in inputs:
    example = examples.as_example(given)
    count = example.batch()
    size = max(size, count)
    found.append(np.asarray(_run(graphdef, state, _filled(example, size))))
    found[-1] = found[-1][:count]
  return np.concatenate(found)


def classes(outputs: np.ndarray) -> np.ndarray:
  """Give the class of each row of logits; -1 where one of these is NaN."""
  return np.where(
    np.isnan(outputs).any(axis=-1), -1, np.argmax(outputs, axis=-1)
  )


@functools.partial(jax.jit, static_argnums=0)
def _run(graphdef, state, example):
  return example.call(nnx.merge(graphdef, state, copy=True))


def _filled(example: examples.Example, size: int) -> examples.Example:
  """Fill a smaller batch up with its last input."""
  count = example.batch()

  def fill(leaf: Any) -> Any:
    shape = np.shape(leaf)
    if not shape or shape[0] != count:
      return leaf
    return np.pad(
      leaf, [(0, size - count), *[(0, 0)] * (len(shape) - 1)], "edge"
    )

  return example if count == size else example.map(fill)
