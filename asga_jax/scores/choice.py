"""A policy chosen by what is measured of whole policies, not of one tensor."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from asga_jax import checks
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.network import examples
from asga_jax.scores import measured
from asga_jax.scores import probe as probe_lib
from asga_jax.training import progress as progress_lib

# How far local scores are trusted: shares of the way from the first scores.
_TRUSTED = (1.0, 0.5, 0.25)
_LOCAL = "local"


def improve_policy(
  result: result_lib.SearchResult,
  policy: policy_lib.Policy,
  batches: Iterable[Any],
  *,
  evaluations: int = 400,
  divergence: probe_lib.Divergence = measured.kl_divergence,
  corrected: bool = True,
  rounded_on: Iterable[Any] | None = None,
  progress: bool = True,
) -> policy_lib.Policy:
  """Choose among policies near one by their measured divergence.

  Scores of one tensor know nothing of the other tensors' errors. So the policy
  itself is measured, with each tensor at the next fewer and the next more bits:
  these are scores near it. The exact optimum for them at the same budget is
  measured in its turn, and is where the next round starts if it is better. A
  round takes two evaluations a tensor and a few more; each is a forward pass,
  and nothing is compiled anew.

  Args:
    result: of `measure_scores` or of a search: its network and first scores.
    policy: from `allocate`, at the budget to keep to.
    batches: inputs of the network, as `measure_scores` takes them.
    evaluations: the largest number of policies to measure.
    divergence: of the outputs; the default is for logits over classes.
    corrected: whether biases and batch norm are corrected at each policy, as
      `correct_bias` does.
    rounded_on: see `measure_scores`.
    progress: whether to show evaluations and time left.

  Returns:
    The best policy that was measured, at the budget of the one given; its
    provenance holds the divergences and how many were measured.

  Raises:
    ValueError: no batches, or a policy of other layers.
  """
  result_lib.check(result)
  checks.number("evaluations", evaluations, least=1, whole=True)
  checks.function("divergence", divergence)
  checks.flag("corrected", corrected)
  checks.flag("progress", progress)
  given = list(examples.each_of(batches))
  policy_lib.check(policy)
  images = (
    []
    if rounded_on is None
    else list(examples.each_of(rounded_on, "rounded_on"))
  )
  search = _Measured(result, given, divergence, corrected, images)
  kept, best = policy, search.bits_of(policy)
  found = best
  first = lowest = search.measure(best)
  scores = {
    group: -np.asarray(values, float)
    for group, values in result.scores[result.score].items()
  }
  moves = search.neighbours(best)
  while search.count + len(moves) + len(_TRUSTED) <= evaluations:
    shown = progress_lib.watched(moves, label="policies") if progress else moves
    around = {
      (group, index): search.measure({**best, group: index}) - lowest
      for group, index in shown
    }
    local = local_scores(best, scores, around, search.widths)
    before = lowest
    for share in _TRUSTED:
      mixed = {
        group: share * local[group]
        + (1 - share) * (scores[group] - scores[group][best[group]])
        for group in local
      }
      tried = search.solve(mixed, policy.budget)
      bits = search.bits_of(tried)
      value = search.measure(bits)
      if value < lowest:
        policy, found, lowest = tried, bits, value
    logging.info("divergence %.4g, before %.4g", lowest, before)
    if not lowest < before:
      break
    best, scores = found, local
    moves = search.neighbours(best)
  measurements = {
    "divergence_before": first,
    "divergence": lowest,
    "evaluations": search.count,
  }
  return dataclasses.replace(
    policy, provenance={**kept.provenance, **measurements}
  )


def local_scores(
  bits: Mapping[str, int],
  before: Mapping[str, np.ndarray],
  around: Mapping[tuple[str, int], float],
  widths: Mapping[str, Sequence[int]],
) -> dict[str, np.ndarray]:
  """Take what was measured around a policy into the scores of its tensors.

  Args:
    bits: group -> index of the policy's candidate.
    before: group -> divergence of each candidate, up to a constant.
    around: (group, index of a neighbour) -> what divergence it adds.
    widths: group -> bits of each candidate.

  Returns:
    As `before`, and 0 at the policy: as measured at the neighbours, and beyond
    them the differences of `before` in the proportion of the two. More bits
    never add divergence.
  """
  found = {}
  for group, values in before.items():
    here = bits[group]
    scaled = np.asarray(values, float) - values[here]
    for (which, index), value in around.items():
      if which != group:
        continue
      fewer = widths[group][index] < widths[group][here]
      # Where noise says otherwise, there is nothing to win or to lose.
      value = max(value, 0.0) if fewer else min(value, 0.0)
      side = [
        other
        for other, width in enumerate(widths[group])
        if (width < widths[group][here]) == fewer and other != here
      ]
      known = scaled[index]
      scaled[side] = scaled[side] * (value / known) if known else value
    found[group] = scaled
  return found


class _Measured:
  """Policies as indices of candidates, and what is measured of them."""

  def __init__(
    self,
    result: result_lib.SearchResult,
    given: Sequence[examples.Example],
    divergence: probe_lib.Divergence,
    corrected: bool,
    rounded_on: Sequence[examples.Example],
  ):
    self._result = result
    self._probe = probe_lib.Probe(
      result.model,
      result.space,
      given,
      divergence=divergence,
      corrected=corrected,
      rounded_on=rounded_on,
    )
    self._known: dict[tuple[int, ...], float] = {}
    self.widths = self._probe.candidates.widths

  @property
  def count(self) -> int:
    """How many policies were measured."""
    return len(self._known)

  def bits_of(self, policy: policy_lib.Policy) -> dict[str, int]:
    """Give the index of each group's candidate."""
    found: dict[str, int] = {}
    for path, choice in self._result.space.choices.items():
      layer = policy.layers.get(path)
      if layer is None:
        raise policy_lib.PolicyError(
          f"the policy of {policy.model!r} has no layer {path!r}; expected one"
          " for this network."
        )
      for group, bits in (
        (choice.weight_group, layer.weight_bits),
        (choice.activation_group, layer.activation_bits),
      ):
        if bits not in self.widths[group]:
          raise policy_lib.PolicyError(
            f"the policy has {bits} bits for {group!r}; expected one of its"
            f" candidates, {self.widths[group]}."
          )
        found[group] = self.widths[group].index(bits)
    return found

  def measure(self, bits: Mapping[str, int]) -> float:
    """Give the mean divergence of a policy from the float network."""
    key = tuple(bits[group] for group in self.widths)
    if key not in self._known:
      for group, index in bits.items():
        self._probe.candidates.set_candidate(group, index)
      value = self._probe.measure()
      self._known[key] = value if np.isfinite(value) else np.inf
    return self._known[key]

  def neighbours(self, bits: Mapping[str, int]) -> list[tuple[str, int]]:
    """List each group's next candidates of fewer and of more bits."""
    found = []
    for group, here in bits.items():
      order = list(np.argsort(self.widths[group]))
      place = order.index(here)
      found += [
        (group, int(order[next_]))
        for next_ in (place - 1, place + 1)
        if 0 <= next_ < len(order)
      ]
    return found

  def solve(
    self, scores: Mapping[str, np.ndarray], budget: str
  ) -> policy_lib.Policy:
    """Choose the exact optimum for divergences by tensor."""
    scored = {group: -values for group, values in scores.items()}
    return result_lib.allocate(
      dataclasses.replace(
        self._result, scores={_LOCAL: scored}, score=_LOCAL, budget=budget
      )
    )
