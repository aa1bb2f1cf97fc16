"""Scores, costs and limits to bits: the best policy within a budget."""

import fractions
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from asga_jax.allocation import program as pair_program
from asga_jax.allocation import solver as pair_solver
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib


def allocate_bits(
  network: costs_lib.NetworkStats,
  choices: costs_lib.Choices,
  weight_scores: Mapping[str, npt.ArrayLike],
  activation_scores: Mapping[str, npt.ArrayLike],
  costs: Sequence[costs_lib.Cost],
  limits: Mapping[str, costs_lib.Number],
  *,
  min_use: float = 0.98,
) -> dict[str, tuple[int, int]]:
  """Choose the bits of the largest total score within the limits.

  Among the policies within all limits, those count whose use, the largest
  cost / limit, is at least `min_use`; where there is none, those of the
  largest use. The one of these with the largest total score, each tied group
  counted once, is returned. Equal inputs give equal results.

  Args:
    network: the deployed network.
    choices: candidates of every layer.
    weight_scores: weight group, or path of an untied layer -> score of each
      candidate, shape [candidates], larger is better. What has one candidate
      may be absent.
    activation_scores: the same for the layers' inputs.
    costs: at least those that are limited.
    limits: name of a cost -> limit > 0, at least one; see `budget.resolve`.
    min_use: share of the budget to be used, in [0, 1]. The program finds it
      hard to prove that shares near 1 are out of reach.

  Returns:
    Path -> (weight bits, activation bits), in the order of the calls.

  Raises:
    InfeasibleBudgetError: no policy meets the limits.
    ValueError: scores that are missing, unknown, of another shape or not
      finite; a limit without a cost; min_use outside [0, 1].
  """
  if not 0 <= min_use <= 1:
    raise ValueError(f"min_use = {min_use!r}: expected a value in [0, 1].")
  program = _program(network, choices, costs, limits)
  scores = score_vector(program, weight_scores, activation_scores)
  inside = {name: (0, limit) for name, limit in limits.items()}
  best = pair_solver.solve(program, scores, inside)
  if not best:
    raise infeasible(program, limits)
  # As a decimal: 0.98 of 150 is 147, whatever the nearest float of 0.98.
  share = fractions.Fraction(repr(float(min_use)))
  if max(_uses(program, best, limits).values()) < share:
    best = _fuller(program, scores, limits, share)
  return pair_program.bits(program, best)


def check_feasible(
  network: costs_lib.NetworkStats,
  choices: costs_lib.Choices,
  costs: Sequence[costs_lib.Cost],
  limits: Mapping[str, costs_lib.Number],
) -> None:
  """Check that some choice of the candidates meets all limits together.

  Raises:
    InfeasibleBudgetError: there is none; the message names the limits and the
      lowest reachable costs.
    ValueError: a limit without a cost.
  """
  program = _program(network, choices, costs, limits)
  inside = {name: (0, limit) for name, limit in limits.items()}
  if not pair_solver.solve(program, np.zeros(program.size), inside):
    raise infeasible(program, limits)


def _program(
  network: costs_lib.NetworkStats,
  choices: costs_lib.Choices,
  costs: Sequence[costs_lib.Cost],
  limits: Mapping[str, costs_lib.Number],
) -> pair_program.PairProgram:
  known = costs_lib.by_name(costs)
  if not limits or not set(limits) <= set(known):
    raise ValueError(
      f"limits = {dict(limits)!r}: expected one or more, each of one of the"
      f" costs {sorted(known)}."
    )
  for name, limit in limits.items():
    if not 0 < limit < math.inf:
      raise ValueError(f"limit of {name} = {limit!r}: expected it above 0.")
  return pair_program.build(network, choices, [known[n] for n in limits])


def score_vector(
  program: pair_program.PairProgram,
  weight_scores: Mapping[str, npt.ArrayLike],
  activation_scores: Mapping[str, npt.ArrayLike],
) -> np.ndarray:
  """Score every variable; a tied group's score stands on its first layer."""
  result = np.zeros(program.size)
  for kind, axis, scores in (
    ("weight", 1, weight_scores),
    ("activation", 0, activation_scores),
  ):
    seen = set()
    for path, pairs in program.pairs.items():
      choice = program.choices[path]
      key = getattr(choice, f"{kind}_key")(path)
      bits = getattr(choice, f"{kind}_bits")
      if key in seen:
        continue
      seen.add(key)
      if key not in scores and len(bits) == 1:
        continue
      values = np.asarray(scores.get(key, ()), np.float64)
      if values.shape != (len(bits),) or not np.isfinite(values).all():
        raise ValueError(
          f"{kind}_scores[{key!r}] = {scores.get(key)!r}: expected one finite"
          f" score for each of the candidates {bits}."
        )
      result[pairs] += np.expand_dims(values, axis)
    unknown = sorted(set(scores) - seen)
    if unknown:
      raise ValueError(
        f"{kind}_scores has {unknown}, which are neither {kind} groups nor"
        f" untied layers: expected {sorted(seen)}."
      )
  return result


def _uses(
  program: pair_program.PairProgram,
  picks: pair_program.Picks,
  limits: Mapping[str, costs_lib.Number],
) -> dict[str, fractions.Fraction]:
  """Compute cost / limit of each."""
  return {
    name: fractions.Fraction(pair_program.total(program, picks, name))
    / fractions.Fraction(limit)
    for name, limit in limits.items()
  }


def _fuller(
  program: pair_program.PairProgram,
  scores: np.ndarray,
  limits: Mapping[str, costs_lib.Number],
  share: fractions.Fraction,
) -> pair_program.Picks:
  """Find the best policy of at least this use, or else of the largest."""
  windows: dict[str, tuple[pair_program.Exact, pair_program.Exact]] = {
    name: (share * fractions.Fraction(limit), limit)
    for name, limit in limits.items()
  }
  best = _best_of(program, scores, limits, windows)
  if best:
    return best
  inside = {name: (0, limit) for name, limit in limits.items()}
  uses = {}
  for name in limits:
    picks = pair_solver.solve(program, program.rows[name], inside)
    assert picks is not None  # the limits can be met
    uses[name] = _uses(program, picks, limits)[name]
    windows[name] = 2 * (pair_program.total(program, picks, name),)
  windows = {
    name: windows[name] for name in limits if uses[name] == max(uses.values())
  }
  best = _best_of(program, scores, limits, windows)
  assert best is not None  # that of the largest use is one
  return best


def _best_of(
  program: pair_program.PairProgram,
  scores: np.ndarray,
  limits: Mapping[str, costs_lib.Number],
  windows: Mapping[str, tuple[pair_program.Exact, pair_program.Exact]],
) -> pair_program.Picks | None:
  """Find the best policy with one of the costs in its window."""
  inside = {name: (0, limit) for name, limit in limits.items()}
  best, above = None, -math.inf
  for name, window in windows.items():
    picks = pair_solver.solve(
      program, scores, {**inside, name: window}, above=above
    )
    if picks and math.fsum(scores[list(picks)]) > above:
      best, above = picks, math.fsum(scores[list(picks)])
  return best


def infeasible(
  program: pair_program.PairProgram,
  limits: Mapping[str, costs_lib.Number],
) -> budget_lib.InfeasibleBudgetError:
  """Say which limits cannot be met, and the lowest reachable costs."""
  text = {}
  alone = []
  for name, limit in limits.items():
    picks = pair_solver.solve(program, -program.rows[name], {})
    assert picks is not None  # every layer has a pair
    lowest = pair_program.total(program, picks, name)
    text[name] = (
      f"{name} <= {costs_lib.format_amount(name, limit)} (lowest reachable:"
      f" {costs_lib.format_amount(name, lowest)})"
    )
    if lowest > limit:
      alone.append(name)
  if alone:
    return budget_lib.InfeasibleBudgetError(
      "no choice of the candidate bits meets the budget "
      + " and ".join(text[name] for name in alone)
      + ": expected a larger budget, or candidates of fewer bits."
    )
  return budget_lib.InfeasibleBudgetError(
    "each budget can be met alone, but no choice of the candidate bits meets"
    f" them together: {' and '.join(text.values())}; expected larger budgets."
  )
