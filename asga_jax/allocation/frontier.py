"""The policies that no other policy beats in both score and cost, exactly."""

import fractions
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from asga_jax.allocation import choose as allocation
from asga_jax.allocation import program as pair_program
from asga_jax.allocation import solver as pair_solver
from asga_jax.cost import costs as costs_lib

# Scores nearer than this share of the widest layer's spread count as equal: the
# integer program tells no more apart.
_EQUAL = 1e-9
# The row of the program that holds what is lost of the score.
_LOSS = "loss of score"


def find_points(
  network: costs_lib.NetworkStats,
  choices: costs_lib.Choices,
  weight_scores: Mapping[str, npt.ArrayLike],
  activation_scores: Mapping[str, npt.ArrayLike],
  costs: Sequence[costs_lib.Cost],
  cost: str,
  limits: Mapping[str, costs_lib.Number],
  *,
  points: int | None,
  at: Sequence[costs_lib.Number] = (),
) -> tuple[list[dict[str, tuple[int, int]]], bool]:
  """Find points of the exact curve of the largest score against a cost.

  Each is the policy of the largest score among all that cost no more, and the
  cheapest of that score. The lowest reachable cost and the largest score are
  among them; the others are the best at the costs `at`, at costs spread evenly
  by ratio, then those nearest below a point, in the widest gaps first.

  Args:
    network: the deployed network.
    choices: candidates of every layer.
    weight_scores: see `allocation.allocate_bits`.
    activation_scores: the same.
    costs: at least `cost` and those that are limited.
    cost: the name of the cost.
    limits: name of a cost -> limit that every point meets; may be empty.
    points: the largest number of them, at least 2; None for all.
    at: costs whose points come first.

  Returns:
    Path -> (weight bits, activation bits) of each, by rising cost; and whether
    they are known to be all that there are.

  Raises:
    InfeasibleBudgetError: no policy meets the limits.
    ValueError: bad scores.
  """
  known = costs_lib.by_name(costs)
  names = dict.fromkeys([cost, *limits])
  program = pair_program.build(network, choices, [known[n] for n in names])
  scores = allocation.score_vector(program, weight_scores, activation_scores)
  frontier = _Frontier(_with_loss(program, scores), scores, cost, limits)
  if not frontier.probe(math.inf):
    raise allocation.infeasible(program, limits)
  lowest = pair_solver.solve(
    program, -program.rows[cost], frontier.inside(math.inf)
  )
  assert lowest is not None
  frontier.probe(pair_program.total(program, lowest, cost))
  low, high = min(frontier.found), max(frontier.found)
  if points is not None and low < high:
    # A cost of 0 has no ratio to others.
    spread = np.geomspace if low > 0 else np.linspace
    count = max(points - len(at), 2)
    for limit in [*at, *spread(low, high, count)[1:-1].tolist()]:
      if len(frontier.found) < points and not frontier.knows(limit):
        frontier.probe(limit)
  step = _granularity(program, cost)
  while points is None or len(frontier.found) < points:
    gaps = frontier.gaps(step)
    if not gaps:
      break
    frontier.probe(max(gaps, key=lambda gap: gap[1] / (gap[0] or 1))[1])
  return frontier.policies(), not frontier.gaps(step)


class _Frontier:
  """The points found so far, and up to which cost nothing beats each."""

  def __init__(
    self,
    program: pair_program.PairProgram,
    scores: np.ndarray,
    cost: str,
    limits: Mapping[str, costs_lib.Number],
  ):
    self.program = program
    self.scores = scores
    self.cost = cost
    self.limits = limits
    self.found: dict[costs_lib.Number, pair_program.Picks] = {}
    self.reach: dict[costs_lib.Number, costs_lib.Number] = {}

  def inside(
    self, limit: costs_lib.Number
  ) -> dict[str, tuple[pair_program.Exact, pair_program.Exact]]:
    """Make the windows of all limits and one more on the cost."""
    windows: dict[str, tuple[pair_program.Exact, pair_program.Exact]] = {
      name: (0, high) for name, high in self.limits.items()
    }
    high = min(limit, self.limits.get(self.cost, math.inf))
    return {**windows, self.cost: (0, high)} if high < math.inf else windows

  def probe(self, limit: costs_lib.Number) -> bool:
    """Find the point within a limit of the cost; False if there is none."""
    windows = self.inside(limit)
    best = pair_solver.solve(self.program, self.scores, windows)
    if not best:
      return False
    loss = pair_program.total(self.program, best, _LOSS)
    picks = pair_solver.solve(
      self.program,
      -self.program.rows[self.cost],
      {**windows, _LOSS: (0, loss + _EQUAL)},
    )
    assert picks is not None  # the best is one
    total = pair_program.total(self.program, picks, self.cost)
    self.found[total] = picks
    for other in self.found:
      # Also what lies above: its score is no higher, as far as can be told.
      if total <= other <= limit:
        self.reach[other] = max(limit, self.reach.get(other, other))
    return True

  def knows(self, limit: float) -> bool:
    """Whether the point within a limit of the cost has been found."""
    below = min(self.found)
    return limit < below or any(
      low <= limit <= high for low, high in self.reach.items()
    )

  def gaps(
    self, step: fractions.Fraction
  ) -> list[tuple[costs_lib.Number, costs_lib.Number]]:
    """List the costs between which there may be other points."""
    ordered = sorted(self.found)
    result = []
    for low, high in itertools.pairwise(ordered):
      below = _just_below(high, step)
      if self.reach[low] < below:
        result.append((low, below))
    return result

  def policies(self) -> list[dict[str, tuple[int, int]]]:
    """List the bits of the points by rising cost, none of a lower score."""
    result = []
    best = -math.inf
    for _, picks in sorted(self.found.items()):
      score = math.fsum(self.scores[list(picks)])
      if score > best:
        result.append(pair_program.bits(self.program, picks))
        best = score
    return result


def _with_loss(
  program: pair_program.PairProgram, scores: np.ndarray
) -> pair_program.PairProgram:
  """Add what each pair loses of the score as a cost."""
  table = {}
  row = np.zeros(program.size)
  widest = max(np.ptp(scores[own]) for own in program.pairs.values()) or 1.0
  for path, own in program.pairs.items():
    row[own] = (scores[own].max() - scores[own]) / widest
    choice = program.choices[path]
    for pair, loss in np.ndenumerate(row[own]):
      bits = choice.weight_bits[pair[0]], choice.activation_bits[pair[1]]
      table[path, *bits] = float(loss)
  cost = costs_lib.Cost(_LOSS, lambda layer, bw, ba: table[layer.path, bw, ba])
  return program._replace(
    costs={**program.costs, _LOSS: cost},
    rows={**program.rows, _LOSS: row},
    constants={**program.constants, _LOSS: 0},
  )


def _granularity(
  program: pair_program.PairProgram, cost: str
) -> fractions.Fraction:
  """Give the number whose multiples the differences of all totals are."""
  row = [
    fractions.Fraction(pair_program.exact(x))
    for x in program.rows[cost].tolist()
  ]
  unit = math.lcm(*(x.denominator for x in row))
  differences = [
    int((row[i] - row[int(own.flat[0])]) * unit)
    for own in program.pairs.values()
    for i in own.ravel()
  ]
  return fractions.Fraction(math.gcd(*differences) or 1, unit)


def _just_below(
  total: costs_lib.Number, step: fractions.Fraction
) -> costs_lib.Number:
  """Give the next lower cost that there may be, as totals are rounded."""
  below = fractions.Fraction(pair_program.exact(total)) - step
  if below.denominator == 1:
    return int(below)
  return min(float(below), math.nextafter(total, -math.inf))
