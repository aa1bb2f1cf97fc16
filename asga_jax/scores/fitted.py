"""Scores that are fitted to the losses of whole policies."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from asga_jax import checks
from asga_jax import result as result_lib
from asga_jax.allocation import space as search_space
from asga_jax.cost import budget as budget_lib
from asga_jax.quantization import batch_norm, bit_choice, logit_layout
from asga_jax.scores import additive
from asga_jax.scores import cache as caches
from asga_jax.scores import candidates as candidates_lib
from asga_jax.training import (
  loop,
  losses,
  returned,
  settings,
  sharding,
  steps,
  task_logits,
)
from asga_jax.training import progress as progress_lib

SCORE = "fitted"
# A share of the variance that is told as a warning.
_LITTLE = 0.1


def fit_scores(
  result: result_lib.SearchResult,
  batches: Iterable[Any],
  loss_fn: steps.LossFn = losses.cross_entropy,
  *,
  policies: int = 240,
  seed: int = 0,
  batch_statistics: bool = True,
  prepare: steps.PrepareFn | None = None,
  cache: str | os.PathLike[str] | None = None,
  progress: bool = True,
) -> result_lib.SearchResult:
  """Score every candidate by the losses of whole policies near the budget.

  Policies are drawn, each tensor's bits by itself, fewer more often, so that
  the mean cost meets the budget of `result`; the loss of each is a forward
  pass, with nothing compiled anew. A candidate's score is what it takes off the
  loss beside its tensor's fewest bits, in a sum over all tensors that is fitted
  to these losses: by least squares with a ridge that ten-fold cross-validation
  chooses, such that more bits never score less.

  So a tensor is judged with all others at few bits, and at weights that have
  met few bits if those of `result` have: of a search with `sampled=True`.

  Args:
    result: of a search, or of `measure_scores`: its network is measured.
    batches: a list of raw batches, each as a search takes it, of one size, and
      measured whole for each policy; about a thousand inputs.
    loss_fn: of (model, batch) to the mean loss and a dict of figures.
    policies: how many are drawn, 20 at least; some seven a tensor.
    seed: of the draws.
    batch_statistics: whether norms use the statistics of each batch, unless
      they are called with an argument that says otherwise; False for their
      running ones, as after a search with `freeze_batch_norm=True`.
    prepare: of (key, raw batch) to what `loss_fn` takes.
    cache: a file to keep losses in, policy by policy: a run that was ended
      goes on from there. It knows its network, batches, policies and what was
      set, but not `loss_fn`.
    progress: whether to show policies and time left.

  Returns:
    The result with one more score, 'fitted', to choose by. Its provenance says
    how many policies were measured, and `fitted_share`, the share of their
    variance that sums predict where they were not fitted; near 0 they say
    nothing, and a warning tells so.

  Raises:
    ValueError: no batches, nothing to choose, a loss that is not finite, or a
      cache of another network, other batches, budget or seed.

  Source: additive surrogates of a one-shot network's accuracy, as in Guo et
  al., "Single Path One-Shot" (2020), whose bits are drawn uniformly.
  """
  result_lib.check(result)
  settings.check_functions(loss_fn, prepare, None)
  checks.number("policies", policies, least=2 * additive.FOLDS, whole=True)
  checks.number("seed", seed, least=0, whole=True)
  checks.flag("batch_statistics", batch_statistics)
  checks.flag("progress", progress)
  loop.check_batches(batches)
  given = list(batches)
  if not given:
    raise ValueError("batches is empty; expected at least one batch.")
  if not any(len(bits) > 1 for bits in result.space.widths.values()):
    raise ValueError("every tensor has one candidate; expected some to choose.")
  drawn = draw(result, policies, seed)
  if all(policy == drawn[0] for policy in drawn):
    raise ValueError(
      f"at the budget {result.budget!r} all policies that were drawn are the"
      " same; expected a budget that leaves a choice."
    )
  key = jax.random.key(seed)
  prepared = settings.checked_prepare(prepare)
  data = [
    prepared(jax.random.fold_in(key, number), sharding.checked_batch(batch))
    for number, batch in enumerate(given)
  ]
  known = caches.Cache(
    cache,
    result.model,
    data,
    (SCORE, result.budget, seed, batch_statistics),
  )
  measured = _measure(
    result, drawn, data, loss_fn, batch_statistics, known, progress
  )
  widths = result.space.widths
  searched = {g: bits for g, bits in widths.items() if len(bits) > 1}
  gains, share = additive.fit(searched, drawn, np.asarray(measured))
  tell = logging.warning if share < _LITTLE else logging.info
  tell(
    "%d policies: sums over tensors predict %.0f %% of their losses' variance",
    policies,
    100 * share,
  )
  flat = {g: np.zeros(len(bits)) for g, bits in widths.items()}
  scores = {g: values.tolist() for g, values in (flat | gains).items()}
  told = {"fitted_policies": policies, "fitted_share": share}
  known.put(SCORE, {"scores": scores, "told": told})
  return with_scores(result, scores, told)


def read_scores(
  result: result_lib.SearchResult, path: str | os.PathLike[str]
) -> result_lib.SearchResult:
  """Give a result the scores that `fit_scores` has kept in a file.

  Args:
    result: what they were measured of.
    path: the `cache` of `fit_scores`.

  Returns:
    What `fit_scores` has returned.

  Raises:
    ValueError: no such file, one that is not filled, or scores of another
      network.
  """
  _, values = caches.read(pathlib.Path(path))
  try:
    kept = values[SCORE]
    scores, told = dict(kept["scores"]), dict(kept["told"])
    sizes = {group: np.shape(each) for group, each in scores.items()}
  except (LookupError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} holds {len(values)} losses and no scores yet: what measured them"
      " has not ended; give its command again."
    ) from error
  if sizes != {g: (len(bits),) for g, bits in result.space.widths.items()}:
    raise ValueError(
      f"{path} holds scores of {len(sizes)} tensors that are not those of this"
      f" network, which has {len(result.space.widths)}; expected a file of its"
      " own."
    )
  return with_scores(result, scores, told)


def with_scores(
  result: result_lib.SearchResult,
  scores: Mapping[str, Sequence[float]],
  told: Mapping[str, Any],
) -> result_lib.SearchResult:
  """Add fitted scores, to choose by, and what provenance tells of them."""
  arrays = {group: np.asarray(values) for group, values in scores.items()}
  return dataclasses.replace(
    result,
    scores={**result.scores, SCORE: arrays},
    score=SCORE,
    provenance={**result.provenance, **told},
  )


def draw(
  result: result_lib.SearchResult, policies: int, seed: int
) -> list[dict[str, int]]:
  """Draw policies: group -> index of its candidate. More keep the first."""
  rates = draw_rates(result)
  generator = np.random.default_rng(seed)
  return [
    {g: int(generator.choice(len(p), p=p)) for g, p in rates.items()}
    for _ in range(policies)
  ]


def draw_rates(result: result_lib.SearchResult) -> dict[str, np.ndarray]:
  """Give probabilities of candidates whose expected cost meets the budget.

  Those of equal logits, less the smallest price of bits that does.

  Args:
    result: of which the budget and the candidates are read.

  Returns:
    Group -> probabilities, float64, shape (candidates,).
  """
  space = result.space
  state = nnx.state(result.model, bit_choice.BitLogits)
  layout = logit_layout.LogitLayout.of(nnx.as_pure(state))
  zeros = jax.tree.map(jnp.zeros_like, layout.stack(nnx.as_pure(state)))
  limits = budget_lib.resolve(
    budget_lib.parse_budget(result.budget),
    space.network,
    space.choices,
    search_space.known_costs(result.costs),
  )
  use = space.expected_use(layout, limits, result.costs)
  one = jnp.float32(1)
  priced = jax.jit(task_logits.priced, static_argnums=1)(zeros, use, one)
  rates = layout.unstack(logit_layout.probabilities(priced, one))
  found = {}
  for group, values in space.by_group(rates).items():
    wide = np.asarray(values, np.float64)
    found[group] = wide / wide.sum()
  return found


def _measure(
  result: result_lib.SearchResult,
  drawn: Sequence[Mapping[str, int]],
  data: Sequence[Any],
  loss_fn: steps.LossFn,
  batch_statistics: bool,
  known: caches.Cache,
  progress: bool,
) -> list[float]:
  """Give the mean loss of each policy over all batches."""
  network = candidates_lib.Candidates(result.model, result.space)
  if batch_statistics:
    batch_norm.use_batch_statistics(network.model)
  graphdef = nnx.graphdef(network.model)

  @jax.jit
  def run(state: Any, batch: Any) -> jax.Array:
    try:
      told = loss_fn(nnx.merge(graphdef, state, copy=True), batch)
    except Exception as error:
      raise returned.not_run("loss_fn", error, batch) from error
    value, _ = returned.checked(told)
    return value

  sizes = [len(jax.tree.leaves(batch)[0]) for batch in data]
  found = []
  shown = progress_lib.watched(drawn, label="policies") if progress else drawn
  for number, bits in enumerate(shown):
    kept = known.get(str(number))
    if kept is not None:
      if kept[1:] != list(bits.values()):
        raise ValueError(
          f"what was kept of policy {number} is of other bits than those drawn"
          " now: of other costs, or another machine's; expected a new file."
        )
      found.append(kept[0])
      continue
    for group, index in bits.items():
      network.set_candidate(group, index)
    state = nnx.state(network.model)
    each = [float(run(state, batch)) for batch in data]
    value = float(np.average(each, weights=sizes))
    if not np.isfinite(value):
      raise ValueError(
        f"policy {number} of {len(drawn)} has the loss {value}; expected a"
        " network that has been trained at such bits: a search with"
        " sampled=True."
      )
    found.append(value)
    known.put(str(number), [value, *bits.values()])
  return found
