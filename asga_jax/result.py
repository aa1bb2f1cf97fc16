"""What a search leaves: scores that serve any budget."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from flax import nnx

from asga_jax import checks
from asga_jax import policy as policy_lib
from asga_jax.allocation import choose as allocation
from asga_jax.allocation import space as search_space
from asga_jax.allocation import uniform
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib

# Packages whose versions a policy names.
VERSIONED = ("asga-jax", "jax", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class SearchResult:
  """A searched network and the scores of its candidates."""

  # The searchable network with the weights and logits that were trained.
  model: nnx.Module
  space: search_space.SearchSpace
  # Score name -> group -> score of each candidate.
  scores: Mapping[str, Mapping[str, np.ndarray]]
  # The budget of the search, and which of the scores it chose by.
  budget: str
  score: str = "first_order"
  costs: Sequence[costs_lib.Cost] = ()
  input_shape: tuple[int, ...] = (1,)
  model_name: str = "model"
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    checks.instance("scores", self.scores, Mapping, "a dict of dicts of arrays")
    checks.text("budget", self.budget, "a budget, such as 'bops=4bit'")
    checks.choice("score", self.score, tuple(self.scores))
    search_space.known_costs(self.costs)
    checks.instance("input_shape", self.input_shape, tuple, "a tuple of sizes")
    for size in self.input_shape:
      checks.number("input_shape", size, least=1, whole=True)
    space = self.space
    checks.instance("space", space, search_space.SearchSpace, "a SearchSpace")
    check_names(self.model_name, self.provenance)


def check(result: Any, name: str = "result", *, optional: bool = False) -> None:
  """Check that a result is one, or None where it may be; raises ValueError."""
  expected = "what asga_jax.search_policy or asga_jax.measure_scores returns"
  if not (optional and result is None):
    checks.instance(name, result, SearchResult, expected)


def check_names(model_name: Any, provenance: Any) -> None:
  """Check what policies say of their origin; raises ValueError."""
  checks.text("model_name", model_name, "a name")
  checks.instance("provenance", provenance, Mapping, "a dict by name")


def score_of(result: SearchResult, score: str | None) -> str:
  """Give the score to use, the result's own for None; ValueError if none."""
  check(result)
  score = result.score if score is None else score
  checks.choice("score", score, tuple(result.scores))
  return score


def make_scores(
  logits: Mapping[str, jax.Array],
  slope_sums: Mapping[str, jax.Array],
  steps: int,
  widths: Mapping[str, Sequence[int]],
) -> dict[str, dict[str, np.ndarray]]:
  """Make the scores of a search's candidates; larger is better.

  None has the budget's penalty in it.

  Args:
    logits: group -> logits, shape (candidates,).
    slope_sums: group -> sum over the steps of dL/dp, centred.
    steps: how many steps were summed.
    widths: group -> bits of each candidate.

  Returns:
    'log_prob': log softmax of the logits, float64; 'first_order': minus the
    mean slope, the first-order fall of the loss when the mixture moves to that
    candidate, free of the budget's penalty; 'noise_power': -a 4^-b at b bits,
    the power of rounding noise, with a >= 0 fitted to 'first_order' by least
    squares, one number a tensor.
  """
  log_prob = {}
  for group, values in logits.items():
    wide = np.asarray(values, np.float64)
    log_prob[group] = np.asarray(wide - np.logaddexp.reduce(wide))
  first_order = {
    group: -np.asarray(total, np.float64) / max(steps, 1)
    for group, total in slope_sums.items()
  }
  return {
    "log_prob": log_prob,
    "first_order": first_order,
    "noise_power": {
      group: _noise_power(widths[group], values)
      for group, values in first_order.items()
    },
  }


def _noise_power(bits: Sequence[int], values: np.ndarray) -> np.ndarray:
  """Fit c - a 4^-b to values by least squares; give its second term."""
  power = 4.0 ** -np.asarray(bits, np.float64)
  centred = power - power.mean()
  spread = float(centred @ centred)
  strength = -float(centred @ values) / spread if spread else 0.0
  return -max(strength, 0.0) * power


def allocate(
  result: SearchResult,
  *,
  budget: str | None = None,
  score: str | None = None,
  min_use: float = 0.98,
) -> policy_lib.Policy:
  """Choose the best policy of a search within a budget, exactly.

  One search serves every budget: nothing is trained here.

  Args:
    result: of a search.
    budget: such as 'bops=4bit' or 'size=6MB,bops=2%'; None for the search's.
    score: one of the result's; None for the search's.
    min_use: the share of the budget to use where it can be reached.

  Returns:
    The policy, with its exact costs.

  Raises:
    InfeasibleBudgetError: no policy is cheap enough; it names the lowest cost.
    ValueError: a malformed budget or an unknown score.
  """
  score = score_of(result, score)
  checks.number("min_use", min_use, least=0, most=1)
  parsed = budget_lib.parse_budget(result.budget if budget is None else budget)
  space = result.space
  costs = search_space.known_costs(result.costs)
  limits = budget_lib.resolve(parsed, space.network, space.choices, costs)
  weights, activations = search_space.split_scores(space, result.scores[score])
  bits = allocation.allocate_bits(
    space.network,
    space.choices,
    weights,
    activations,
    costs,
    limits,
    min_use=min_use,
  )
  return make_policy(
    space,
    bits,
    limits,
    costs=result.costs,
    budget=str(parsed),
    model_name=result.model_name,
    input_shape=result.input_shape,
    provenance={**result.provenance, "score": score},
  )


def uniform_policy(
  result: SearchResult, budget: str | None = None
) -> policy_lib.Policy:
  """Give the network of a search uniform bits within a budget.

  What the policy of the same budget has to beat: see
  `allocation.uniform.uniform_bits` for how a budget between two widths is used.

  Args:
    result: of a search; its scores do not matter.
    budget: such as 'bops=4bit'; None for the search's.

  Returns:
    The policy, with its exact costs.

  Raises:
    InfeasibleBudgetError: no policy is cheap enough; it names the lowest cost.
    ValueError: a malformed budget.
  """
  parsed = budget_lib.parse_budget(result.budget if budget is None else budget)
  space = result.space
  costs = search_space.known_costs(result.costs)
  limits = budget_lib.resolve(parsed, space.network, space.choices, costs)
  return make_policy(
    space,
    uniform.uniform_bits(space.network, space.choices, costs, limits),
    limits,
    costs=result.costs,
    budget=str(parsed),
    model_name=result.model_name,
    input_shape=result.input_shape,
    provenance={**result.provenance, "method": "uniform"},
  )


def make_policy(
  space: search_space.SearchSpace,
  bits: Mapping[str, tuple[int, int]],
  limits: Mapping[str, costs_lib.Number],
  *,
  costs: Sequence[costs_lib.Cost] = (),
  budget: str,
  model_name: str,
  input_shape: Sequence[int],
  provenance: Mapping[str, Any],
) -> policy_lib.Policy:
  """Make a policy of bits, with its exact costs.

  Args:
    space: the layers.
    bits: path -> (weight bits, activation bits), for every layer.
    limits: the absolute limit of each cost in the budget.
    costs: costs beyond BOPs and sizes.
    budget: its text.
    model_name: the network's name.
    input_shape: of one input of the deployed network.
    provenance: where the policy comes from.

  Returns:
    The policy, its layers in call order.
  """
  sizes = (costs_lib.SIZE.name, costs_lib.CONTAINER_SIZE.name)
  shown = {costs_lib.BOPS.name, *sizes, *limits}
  totals = {
    cost.name: costs_lib.total_cost(space.network, bits, cost)
    for cost in search_space.known_costs(costs)
    if cost.name in shown
  }
  convention = costs_lib.BopsConvention.ALL_LAYERS_FIXED_AT_OWN_BITS
  return policy_lib.Policy(
    model=model_name,
    input_shape=tuple(int(size) for size in input_shape),
    layers={
      layer.path: policy_lib.LayerPolicy(
        weight_bits=bits[layer.path][0],
        activation_bits=bits[layer.path][1],
        macs=layer.macs,
        weights=layer.weights,
        searched=space.choices[layer.path].searched,
      )
      for layer in space.network.layers
    },
    cost={
      "bops": totals["bops"],
      "bops_convention": str(convention),
      **{f"{name}_bytes": -(-int(totals[name]) // 8) for name in sizes},
      **{k: v for k, v in totals.items() if k not in ("bops", *sizes)},
      "budget_used": budget_lib.budget_used(totals, limits),
    },
    budget=budget,
    provenance=dict(provenance),
  )


def versions() -> dict[str, str]:
  """Give the versions of the packages that a search rests on.

  One that is on the path without being installed has the version 'unknown'.
  """
  return {name: _version(name) for name in VERSIONED}


def _version(name: str) -> str:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return "unknown"
