"""One compiled step, of a search or of a training."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from asga_jax import sharpness
from asga_jax.cost import budget as budget_lib
from asga_jax.quantization import logit_layout
from asga_jax.training import (
  accumulation,
  changed_codes,
  nonfinite,
  per_shard,
  returned,
  sharding,
  task_logits,
)
from asga_jax.training import figures as figures_lib
from asga_jax.training import state as state_lib
from asga_jax.xla import outline, promotion

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# From a network and a batch to the mean loss and further figures.
LossFn = Callable[[Any, Any], tuple[jax.Array, Metrics]]
# From a key and a raw batch to what the loss function takes.
PrepareFn = Callable[[jax.Array, Any], Any]
Schedule = Callable[[jax.Array], jax.Array]

# Folded into a step's key for the draw of candidates.
_SAMPLING = 2


class StepParts(NamedTuple):
  """What a step is made of: constants of the compiled program."""

  # Of the network whose bit choices hold probabilities.
  graphdef: nnx.GraphDef
  layout: logit_layout.LogitLayout
  loss_fn: LossFn
  prepare: PrepareFn
  transform: sharpness.Transformation
  optimizer: optax.GradientTransformation
  logit_optimizer: optax.GradientTransformation
  # From stacked probabilities to expected cost over budget, shape=(budgets,).
  expected_use: Callable[[logit_layout.StackedLogits], jax.Array] | None = None
  logit_learning_rate: float = 0.0
  temperature: Schedule = optax.constant_schedule(1.0)
  # Whether a step runs at one candidate of each tensor, drawn by the
  # probabilities, instead of at the mixture of all.
  sampled: bool = False
  multiplier_rate: float = 0.0
  # Steps from one update of the logits to the next, in a bilevel search.
  logits_every: int = 1
  # The mesh over whose axis `data` each shard is perturbed, or only normalised,
  # by itself.
  shards: Mesh | None = None
  norm_shards: Mesh | None = None
  # Where weights lie while the network runs on them, of a state in parts.
  gathered: Any = None
  # How many micro-batches a pass is made of.
  accumulate: int = 1
  # Whether a step that is not finite is left out, see `nonfinite`.
  skips_nonfinite: bool = False


class Choosing(NamedTuple):
  """What a step carries on of the choice of bits."""

  logits: logit_layout.StackedLogits
  optimizer: optax.OptState
  multiplier: jax.Array  # shape=(budgets,), dtype=float32
  slope_sum: logit_layout.StackedLogits
  task: Any  # `TaskLogits`, or () where there is no budget


# Of (params, rest, batch) to ((loss, (figures, rest)), gradients).
Pass = Callable[..., tuple[tuple[jax.Array, Any], state_lib.Params]]


@promotion.usual()
def train_step(
  parts: StepParts,
  state: state_lib.TrainState,
  batch: Any,
  heldout: Any = None,
) -> tuple[state_lib.TrainState, Metrics]:
  """Make one step of a search, or of training a fixed or a float network.

  Joint (`heldout` None): weights and logits move by one aligned gradient of two
  passes on `batch`. Bilevel: weights by two passes on `batch`, then logits by
  two passes on `heldout`, where the weights are perturbed by that batch's own
  gradient; both halves use one radius.

  With a displacement from earlier steps the second pass falls away, and the
  first is at the displaced weights: loss and figures are those there.
  With no candidate to choose from and no budget it trains a fixed policy.

  Args:
    parts: the constants.
    state: the state before.
    batch: a raw batch for weights.
    heldout: a raw batch for logits, or None.

  Returns:
    The state after, and figures of the step, each of shape (); those of a
    second pass are NaN where it was skipped.
  """
  temperature = parts.temperature(state.step)
  key = jax.random.fold_in(state.key, state.step)
  one_pass = make_pass(parts)

  gradients, new_sharpness, rest, figures = aligned_gradient(
    parts, state, state.params, batch, key, temperature, one_pass
  )
  params, optimizer = move_weights(parts, state, gradients)
  before = Choosing(
    params.logits,
    state.logit_optimizer,
    state.multiplier,
    state.slope_sum,
    state.task,
  )
  if heldout is None:
    chosen = move_logits(parts, before, gradients.logits, temperature)
  else:

    def on_heldout(before: Choosing) -> tuple[Choosing, jax.Array]:
      other_key = jax.random.fold_in(key, 1)
      gradients, _, _, figures = aligned_gradient(
        parts, state, params, heldout, other_key, temperature, one_pass
      )
      chosen = move_logits(parts, before, gradients.logits, temperature)
      return chosen, figures["loss"]

    chosen, figures["heldout_loss"] = jax.lax.cond(
      state.step % parts.logits_every == 0,
      on_heldout,
      lambda before: (before, jnp.full((), jnp.nan, figures["loss"].dtype)),
      before,
    )
  new_state = state_lib.TrainState(
    step=state.step + 1,
    key=state.key,
    params=params._replace(logits=chosen.logits),
    rest=rest,
    sharpness=new_sharpness,
    optimizer=optimizer,
    logit_optimizer=chosen.optimizer,
    multiplier=chosen.multiplier,
    slope_sum=chosen.slope_sum,
    task=chosen.task,
    skipped=state.skipped,
  )
  figures |= figures_lib.of_state(new_state, temperature, parts.expected_use)
  if parts.skips_nonfinite:
    new_state, figures = nonfinite.left_out(state, new_state, figures)
  return new_state, figures


def make_pass(parts: StepParts) -> Pass:
  """Make the forward and backward pass that all gradients of a step share."""

  def loss(params, rest, data):
    if parts.gathered is not None:
      whole = jax.lax.with_sharding_constraint(params.weights, parts.gathered)
      params = params._replace(weights=whole)
    model = state_lib.merge_model(parts.graphdef, params, rest)
    try:
      result = parts.loss_fn(model, data)
    except Exception as error:
      raise returned.not_run("loss_fn", error, data) from error
    value, figures = returned.checked(result)
    return value, (figures, state_lib.rest_after(model, params, rest))

  one_pass: Pass = outline.outlined(jax.value_and_grad(loss, has_aux=True))
  axis = sharding.DATA_AXIS if parts.shards or parts.norm_shards else None
  if parts.accumulate > 1:
    one_pass = accumulation.accumulated(one_pass, parts.accumulate, axis)
  if parts.norm_shards is not None:
    one_pass = per_shard.averaged_pass(one_pass, parts.norm_shards)
  return one_pass


def aligned_gradient(
  parts: StepParts,
  state: state_lib.TrainState,
  params: state_lib.Params,
  raw: Any,
  key: jax.Array,
  temperature: jax.Array,
  one_pass: Pass,
) -> tuple[state_lib.Params, sharpness.AsgaState, nnx.State, Metrics]:
  """Compute the sharpness-aware gradient at some parameters.

  Args:
    parts: the constants.
    state: before the step: its rest and its radius.
    params: where the gradient is taken, with stacked logits.
    raw: a raw batch.
    key: for its preparation.
    temperature: τ of p = softmax(logits / τ). shape=().
    one_pass: from `make_pass`.

  Returns:
    The gradient, in the place of the logits that of the stacked probabilities;
    the next state of the transformation; the rest of the network after the
    first pass; and the figures of the first pass, with the share of codes that
    the perturbation changes where there is one.
  """
  data = parts.prepare(key, raw)
  mixed = logit_layout.probabilities(params.logits, temperature)
  if parts.sampled:
    mixed = logit_layout.sample(jax.random.fold_in(key, _SAMPLING), mixed)
  compute: Callable[..., Any] = functools.partial(_of_batch, parts, one_pass)
  if parts.shards is not None:
    compute = per_shard.averaged(compute, parts.shards)
  at = params._replace(logits=mixed)
  return compute(state.sharpness, state.rest, at, data)


def _of_batch(parts, one_pass, before, rest, params, data):
  """Compute what `aligned_gradient` gives, of a prepared batch or a shard."""
  unstacked = params._replace(logits=parts.layout.unstack(params.logits))
  point = sharpness.ascent_point(before, params)
  displaced = point is not params
  point = point._replace(logits=unstacked.logits)
  (value, (figures, after)), gradients = one_pass(point, rest, data)

  def second_pass(point):
    (value, _), gradients = one_pass(point, rest, data)
    return value, gradients

  def share_of_changed_codes(point):
    return changed_codes.changed_codes(parts.graphdef, rest, unstacked, point)

  combined, new_sharpness, changed = parts.transform.update_and_look(
    gradients,
    before,
    unstacked,
    value=value,
    value_and_grad_fn=second_pass,
    look=share_of_changed_codes,
  )
  if displaced:
    changed = share_of_changed_codes(point)
  figures = {"loss": value, **figures}
  if changed is not None:
    figures["codes_changed"] = changed
  combined = combined._replace(logits=parts.layout.stack(combined.logits))
  return combined, new_sharpness, after, figures


def move_weights(
  parts: StepParts, state: state_lib.TrainState, gradients: state_lib.Params
) -> tuple[state_lib.Params, optax.OptState]:
  """Move weights and step sizes; the logits stay."""
  of_trained, trained = (
    {"weights": tree.weights, "quantizers": tree.quantizers}
    for tree in (gradients, state.params)
  )
  updates, optimizer = parts.optimizer.update(
    of_trained, state.optimizer, trained
  )
  trained = optax.apply_updates(trained, updates)
  return state.params._replace(**trained), optimizer


def move_logits(
  parts: StepParts,
  before: Choosing,
  slopes: logit_layout.StackedLogits,
  temperature: jax.Array,
) -> Choosing:
  """Move the logits by the loss and the budget's penalty, then the multiplier.

  What the loss alone moves them by is kept in `task`.

  Args:
    parts: the constants.
    before: the logits and what goes with them.
    slopes: dL/dp of the stacked probabilities p, or of the draw in their place.
    temperature: τ of p = softmax(logits / τ). shape=().
  """
  mixed, pull_back = jax.vjp(
    lambda logits: logit_layout.probabilities(logits, temperature),
    before.logits,
  )
  # What moving the whole mixture to a candidate would change, to first order.
  slope_sum = jax.tree.map(
    lambda total, slope, p: (
      total + slope - jnp.sum(p * slope, axis=1, keepdims=True)
    ),
    before.slope_sum,
    slopes,
    mixed,
  )
  multiplier, task = before.multiplier, before.task
  of_task = slopes
  if parts.expected_use is not None:
    use, pull_use = jax.vjp(parts.expected_use, mixed)
    # The gradient of budget_lib.penalty in the expected use.
    (costs,) = pull_use(jax.grad(budget_lib.penalty, 1)(multiplier, use))
    slopes = jax.tree.map(jnp.add, slopes, costs)
    multiplier = budget_lib.update_multiplier(
      multiplier, use, rate=parts.multiplier_rate
    )
  (gradients,) = pull_back(slopes)
  updates, optimizer = parts.logit_optimizer.update(
    gradients, before.optimizer, before.logits
  )
  logits = optax.apply_updates(before.logits, updates)
  if task:
    (gradients,) = pull_back(of_task)
    task = task_logits.update(
      task, gradients, optimizer, parts.logit_learning_rate
    )
  return Choosing(logits, optimizer, multiplier, slope_sum, task)
