"""A search's policies, uniform bits and float, measured in the same way."""

import contextlib
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from asga_jax import data as data_lib
from asga_jax import evaluate, every_budget
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.cost import budget as budget_lib
from asga_jax.quantization import batch_norm, fixing
from asga_jax.runs import build, pretrain, waits
from asga_jax.weights import files as weight_files

# Other budgets that are measured, as shares of the search's.
SHARES = (0.7, 0.85, 1.2, 1.5)
_DEVIATIONS = 1.96  # of a normal, for 95 %

Bits = Mapping[str, tuple[int, int]]
# From a network, which is settled in place, to which images it gets right.
Judge = Callable[[nnx.Module], np.ndarray]


def make_judge(
  config: ml_collections.ConfigDict,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
) -> Judge:
  """Make what re-estimates batch norm and evaluates on the report images.

  Networks of one structure share a compilation, and all see the same images.

  Args:
    config: of the search.
    dataset: the proxy.
    splits: its parts.
  """
  prepare = build.make_prepare(config, dataset, train=False)

  def judge(model: nnx.Module) -> np.ndarray:
    inputs = evaluate.norm_inputs(
      splits.train,
      prepare,
      batch_size=config.eval_batch_size,
      batches=config.batch_norm_batches,
      seed=config.search.seed,
    )
    batch_norm.reestimate_batch_norm(model, inputs)
    found = evaluate.evaluate(
      model,
      splits.report,
      prepare,
      batch_size=config.eval_batch_size,
      batches=config.report_batches,
    )
    return found.correct

  return judge


def bits_of(policy: policy_lib.Policy) -> Bits:
  """List the bits of a policy by layer path."""
  return {
    path: (layer.weight_bits, layer.activation_bits)
    for path, layer in policy.layers.items()
  }


def judge_float(
  config: ml_collections.ConfigDict,
  directory: pathlib.Path,
  num_classes: int,
  judge: Judge,
) -> float | None:
  """Measure the float network that a search started from.

  Args:
    config: of the search.
    directory: its work directory.
    num_classes: of the proxy.
    judge: from `make_judge`.

  Returns:
    Its accuracy; None where it was not trained, or its weights are gone.
  """
  start = pretrain.with_weights(config, directory)
  if not start.weights.path or start.weights.skip:
    return None
  try:
    network = build.make_network(start, num_classes)
  except weight_files.WeightsError as error:
    logging.warning("the float network is not evaluated: %s", error)
    return None
  with waits.told("evaluating the float network"):
    return float(np.mean(judge(network)))


def compare(
  found: result_lib.SearchResult,
  policy: policy_lib.Policy,
  correct: np.ndarray,
  judge: Judge,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Measure uniform bits, and policies of other budgets, as the policy was.

  Args:
    found: of the search.
    policy: its own.
    correct: which images that gets right.
    judge: from `make_judge`.

  Returns:
    For the summary: `uniform_accuracy`, `gain_over_uniform` and
    `gain_interval`, all None where no uniform bits meet the budget. For the
    picture: `kind` ('searched' or 'uniform'), `cost` and `accuracy` of each.
  """
  planned = plan(found, policy, SHARES)
  own = None
  try:
    own = result_lib.uniform_policy(found)
  except budget_lib.InfeasibleBudgetError as error:
    logging.warning("the policy is not compared with uniform bits: %s", error)

  def measured(name: str, each: policy_lib.Policy, right: np.ndarray) -> Any:
    accuracy = float(np.mean(right))
    return {"kind": name, "cost": first_cost(each), "accuracy": accuracy}

  def run(each: policy_lib.Policy) -> np.ndarray:
    return judge(fixing.select_bits(found.model, bits_of(each)))

  rows = [measured("searched", policy, correct)]
  figures: dict[str, Any] = dict.fromkeys(
    ("uniform_accuracy", "gain_over_uniform", "gain_interval")
  )
  if own is not None:
    with waits.told("evaluating uniform bits within the budget", first=False):
      uniform = run(own)
    rows.append(measured("uniform", own, uniform))
    gain, interval = paired_gain(correct, uniform)
    figures = {
      "uniform_accuracy": float(np.mean(uniform)),
      "gain_over_uniform": gain,
      "gain_interval": interval,
    }
  what = f"evaluating {len(planned)} policies within other budgets"
  with waits.told(what, first=False):
    rows += [measured(name, each, run(each)) for name, each in planned]
  return figures, rows


def plan(
  found: result_lib.SearchResult,
  policy: policy_lib.Policy,
  shares: Sequence[float],
) -> list[tuple[str, policy_lib.Policy]]:
  """Choose policies and uniform bits within other budgets.

  Args:
    found: its scores choose.
    policy: the budgets are shares of what it costs.
    shares: of it.

  Returns:
    'searched' or 'uniform' and the policy, each once, without the given one
    and uniform bits within its budget, and without budgets that none meets.
  """
  planned = []
  known = {("searched", tuple(bits_of(policy).values()))}
  with contextlib.suppress(budget_lib.InfeasibleBudgetError):
    own = result_lib.uniform_policy(found, policy.budget)
    known.add(("uniform", tuple(bits_of(own).values())))
  for text in _other_budgets(policy, shares):
    for name, choose in (
      ("searched", functools.partial(result_lib.allocate, budget=text)),
      ("uniform", functools.partial(result_lib.uniform_policy, budget=text)),
    ):
      try:
        chosen = choose(found)
      except budget_lib.InfeasibleBudgetError:
        continue
      key = name, tuple(bits_of(chosen).values())
      if key not in known:
        known.add(key)
        planned.append((name, chosen))
  return planned


def paired_gain(
  ours: np.ndarray, theirs: np.ndarray
) -> tuple[float, list[float]]:
  """Compare two networks on the same images.

  Args:
    ours: which images the first gets right, shape (images,), bool.
    theirs: likewise the second.

  Returns:
    The difference of their accuracies, and its 95 % interval: the normal one
    of the mean of the differences image by image.
  """
  differences = ours.astype(float) - theirs.astype(float)
  gain = float(np.mean(differences))
  spread = float(np.std(differences)) / math.sqrt(len(differences))
  return gain, [gain - _DEVIATIONS * spread, gain + _DEVIATIONS * spread]


def first_kind(policy: policy_lib.Policy) -> str:
  """Name the cost that a policy's budget names first."""
  return budget_lib.parse_budget(policy.budget).constraints[0].kind


def first_cost(policy: policy_lib.Policy) -> float:
  """Give the cost that a policy's budget names first, in the curve's unit."""
  kind = first_kind(policy)
  cost: Any = policy.cost.get(kind, policy.cost.get(f"{kind}_bytes"))
  return float(cost)


def _other_budgets(
  policy: policy_lib.Policy, shares: Sequence[float]
) -> Sequence[str]:
  """List budgets that are shares of what a policy costs."""
  first, *others = budget_lib.parse_budget(policy.budget).constraints
  amounts = [share * first_cost(policy) for share in shares]
  texts = [every_budget.budget_text(first.kind, amount) for amount in amounts]
  return [",".join([text, *map(str, others)]) for text in texts]
