"""The search: from a searchable network to a policy within a budget."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from asga_jax import checks
from asga_jax import result as result_lib
from asga_jax.allocation import choose as allocation
from asga_jax.allocation import space as search_space
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.quantization import (
  batch_norm,
  fixing,
  layers,
  remembered,
)
from asga_jax.training import (
  loop,
  losses,
  placement,
  search_settings,
  steps,
  task_logits,
)
from asga_jax.training import settings as setup
from asga_jax.training import state as state_lib

# Figures that a display of progress has room for.
SHOWN = ("loss", "accuracy", "gap", "radius", "expected_use")


class Search(NamedTuple):
  """A search that is ready to run: for those who own their loop.

  `state, figures = search.step(state, batch)` makes a step (with a held-out
  batch as third argument if bilevel); `finish_search(search, state)` ends it.
  """

  step: Callable[..., tuple[state_lib.TrainState, steps.Metrics]]
  state: state_lib.TrainState
  graphdef: nnx.GraphDef
  parts: steps.StepParts
  space: search_space.SearchSpace
  mesh: Mesh
  settings: search_settings.SearchSettings
  budget: str
  costs: Sequence[costs_lib.Cost]
  input_shape: tuple[int, ...]


def start_search(
  model: nnx.Module,
  loss_fn: steps.LossFn = losses.cross_entropy,
  *,
  budget: str,
  settings: search_settings.SearchSettings | None = None,
  prior: result_lib.SearchResult | None = None,
  costs: Sequence[costs_lib.Cost] = (),
  prepare: steps.PrepareFn | None = None,
  mesh: Mesh | None = None,
) -> Search:
  """Check everything that can be checked and builds the compiled step.

  Args:
    model: from `searchable`; it is not changed. It is trained in training
      mode, whatever its own.
    loss_fn: of (model, batch) to the mean loss and a dict of figures.
    budget: such as 'bops=4bit'.
    settings: how to search.
    prior: scores that logits start from, such as those of `measure_scores` for
      the same network; None starts from equal logits.
    costs: costs beyond BOPs and sizes.
    prepare: of (key, raw batch) to what `loss_fn` takes, inside the step:
      augmentation, normalisation.
    mesh: of the axis `data` and those of `settings.shard`; None: all devices.

  Returns:
    The search before its first step.

  Raises:
    InfeasibleBudgetError: no policy is cheap enough; it names the lowest cost.
    ValueError: a malformed budget, or a model that is not searchable.
  """
  settings = setup.given(settings, search_settings.SearchSettings)
  result_lib.check(prior, "prior", optional=True)
  search_settings.check_prior(settings, given=prior is not None)
  setup.check_functions(loss_fn, prepare, mesh)
  network, input_shape = remembered.recall(model, "deployed_network")
  space = search_space.build(model, network)
  parsed = budget_lib.parse_budget(budget)
  known = search_space.known_costs(costs)
  for cost in costs:
    cost.check(network, space.choices)
  limits = budget_lib.resolve(parsed, network, space.choices, known)
  allocation.check_feasible(network, space.choices, known, limits)
  taken = state_lib.take_apart(
    model,
    freeze_batch_norm=settings.freeze_batch_norm,
    compute_dtype=settings.compute_dtype,
  )
  started = setup.start_training(
    taken,
    loss_fn,
    settings=settings,
    optimizer=setup.weight_optimizer(settings),
    prepare=prepare,
    mesh=mesh,
    logit_optimizer=task_logits.optimizer(settings.logit_learning_rate),
    logit_learning_rate=settings.logit_learning_rate,
    budgets=len(limits),
    bilevel=settings.mode == "bilevel",
    expected_use=space.expected_use(taken.layout, limits, costs),
    temperature=search_settings.temperature_schedule(settings),
    sampled=settings.sampled,
    multiplier_rate=settings.multiplier_rate,
    logits_every=settings.logits_every,
  )
  search = Search(
    step=started.step,
    state=started.state,
    graphdef=taken.graphdef,
    parts=started.parts,
    space=space,
    mesh=started.mesh,
    settings=settings,
    budget=str(parsed),
    costs=costs,
    input_shape=input_shape,
  )
  if prior is not None:
    scores, strength = prior.scores[prior.score], settings.prior_strength
    return with_prior(search, scores, strength)
  if not settings.sampled:
    return search
  groups = space.by_group(taken.layout.unstack(search.state.params.logits))
  return with_prior(search, jax.tree.map(jnp.zeros_like, groups), 1.0)


def with_prior(
  search: Search, scores: Mapping[str, Any], strength: float
) -> Search:
  """Start the logits from measured scores, less a price of bits.

  Args:
    search: from `start_search`, before its first step.
    scores: group -> a number a candidate, higher is better.
    strength: what they are multiplied by.

  Returns:
    The same search with another state.

  Raises:
    ValueError: scores of other tensors or candidates.
  """
  parts, state = search.parts, search.state
  groups = search.space.by_group(parts.layout.unstack(state.params.logits))
  shapes = {group: values.shape for group, values in groups.items()}
  if {group: np.shape(values) for group, values in scores.items()} != shapes:
    raise ValueError(
      f"prior has scores of {len(scores)} tensors that are not those of the"
      f" model, which has {len(shapes)}; expected scores of the same network"
      " with the same candidates."
    )
  logits = [
    (search.space.logit_paths[group], jnp.asarray(values, jnp.float32))
    for group, values in scores.items()
  ]
  task = parts.layout.stack(nnx.from_flat_state(logits))
  task = jax.tree.map(lambda rows: rows * strength, task)
  assert parts.expected_use is not None
  priced = jax.jit(task_logits.priced, static_argnums=1)(
    task, parts.expected_use, parts.temperature(jnp.zeros((), jnp.int32))
  )
  started = state._replace(
    params=state.params._replace(logits=priced), task=task_logits.init(task)
  )
  return search._replace(state=placement.place_like(started, state))


def trained_model(search: Search, state: state_lib.TrainState) -> nnx.Module:
  """Put a search's network together; a copy in evaluation mode."""
  # Copies, since the next step donates the state.
  params, rest = placement.gathered((state.params, state.rest), search.mesh)
  params = params._replace(logits=search.parts.layout.unstack(params.logits))
  model: nnx.Module = state_lib.merge_model(search.graphdef, params, rest)
  last = search.parts.temperature(jnp.int32(max(int(state.step) - 1, 0)))
  model = fixing.with_temperature(model, last)
  model.eval()
  layers.stop_watching(model)
  return model


def finish_search(
  search: Search,
  state: state_lib.TrainState,
  *,
  model_name: str = "model",
  provenance: Mapping[str, Any] | None = None,
) -> result_lib.SearchResult:
  """End a search: its network and the scores of its candidates.

  Args:
    search: from `start_search`.
    state: after the last step.
    model_name: what policies call the network.
    provenance: what they say of their origin beside method, seed and versions.

  Returns:
    The result, for `allocate`.
  """
  checks.instance("search", search, Search, "what start_search returns")
  state_lib.check(state)
  result_lib.check_names(model_name, {} if provenance is None else provenance)
  done = int(state.step)
  settings = search.settings
  unstack = search.parts.layout.unstack
  last = search.parts.temperature(jnp.int32(max(done - 1, 0)))
  # Of a search from before the two parts were kept apart, whole.
  of_task = state.task.total if state.task else state.params.logits
  of_task, slopes = placement.gathered((of_task, state.slope_sum), search.mesh)
  mixed = jax.tree.map(lambda rows: rows / last, of_task)
  updates = -(-done // settings.logits_every)
  return result_lib.SearchResult(
    model=trained_model(search, state),
    space=search.space,
    scores=result_lib.make_scores(
      search.space.by_group(unstack(mixed)),
      search.space.by_group(unstack(slopes)),
      updates if settings.mode == "bilevel" else done,
      search.space.widths,
    ),
    budget=search.budget,
    score=settings.score,
    costs=search.costs,
    input_shape=search.input_shape,
    model_name=model_name,
    provenance={
      "method": settings.preset,
      "mode": settings.mode,
      "seed": settings.seed,
      "steps": done,
      **(provenance or {}),
      "versions": result_lib.versions(),
    },
  )


def search_policy(
  model: nnx.Module,
  batches: Iterable[Any],
  loss_fn: steps.LossFn = losses.cross_entropy,
  *,
  budget: str,
  settings: search_settings.SearchSettings | None = None,
  prior: result_lib.SearchResult | None = None,
  costs: Sequence[costs_lib.Cost] = (),
  prepare: steps.PrepareFn | None = None,
  mesh: Mesh | None = None,
  progress: bool = True,
) -> result_lib.SearchResult:
  """Train weights and bit choices of a searchable network under a budget.

  Args:
    model: from `searchable`; it is not changed.
    batches: as many as there are steps, or more; in a bilevel search pairs of
      (batch, held-out batch).
    loss_fn: of (model, batch) to the mean loss and a dict of figures.
    budget: such as 'bops=4bit'.
    settings: how to search.
    prior: see `start_search`.
    costs: costs beyond BOPs and sizes.
    prepare: of (key, raw batch) to what `loss_fn` takes, inside the step.
    mesh: of the axis `data`; None for all devices.
    progress: whether to show steps and time left, where somebody looks.

  Returns:
    A network and logits that have been trained, for `allocate`.

  Raises:
    ValueError: see `start_search`; or fewer batches than steps.
    DivergedError: the loss is not finite.
  """
  checks.flag("progress", progress)
  loop.check_batches(batches)
  search = start_search(
    model,
    loss_fn,
    budget=budget,
    settings=settings,
    prior=prior,
    costs=costs,
    prepare=prepare,
    mesh=mesh,
  )
  state = loop.run_watched(
    search.step,
    search.state,
    batches,
    search.settings.steps,
    search.mesh,
    label="search",
    figures=SHOWN,
    progress=progress,
    skip_nonfinite=search.settings.skip_nonfinite,
    pairs=search.settings.mode == "bilevel",
  )
  result = finish_search(search, state)
  if not search.settings.freeze_batch_norm:
    batch_norm.warn_unmoved(model, result.model)
  return result
