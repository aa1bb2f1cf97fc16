"""One compiled step of the search."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from asga_jax import sharpness
from asga_jax.cost import budget as budget_lib
from asga_jax.quantization import bit_choice
from asga_jax.sharpness import perturbation
from asga_jax.training import changed_codes as code_changes
from asga_jax.training import sharding
from asga_jax.training import state as state_lib
from asga_jax.xla import lowering, outline

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# From a network and a batch to the mean loss and further figures.
LossFn = Callable[[Any, Any], tuple[jax.Array, Metrics]]
# From a key and a raw batch to what the loss function takes.
PrepareFn = Callable[[jax.Array, Any], Any]
Schedule = Callable[[jax.Array], jax.Array]


class StepParts(NamedTuple):
  """What a step is made of: constants of the compiled program."""

  # Of the network whose bit choices hold probabilities.
  graphdef: nnx.GraphDef
  layout: state_lib.LogitLayout
  loss_fn: LossFn
  prepare: PrepareFn
  transform: optax.GradientTransformationExtraArgs
  optimizer: optax.GradientTransformation
  logit_optimizer: optax.GradientTransformation
  # From stacked probabilities to expected cost over budget, shape=(budgets,).
  expected_use: Callable[[state_lib.StackedLogits], jax.Array] | None = None
  temperature: Schedule = optax.constant_schedule(1.0)
  multiplier_rate: float = 0.0
  # Steps from one update of the logits to the next, in a bilevel search.
  logits_every: int = 1


def cross_entropy(model: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
  """Compute the mean softmax cross-entropy and the accuracy.

  Args:
    model: a network from images to logits, shape (batch, classes).
    batch: 'image', and 'label' of shape (batch,), integer.

  Returns:
    The loss, shape (), and {'accuracy': shape ()}.

  Raises:
    ValueError: a batch of another form.
  """
  if not isinstance(batch, Mapping) or not {"image", "label"} <= set(batch):
    found = (
      sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
    )
    raise ValueError(
      f"a batch is {found}; cross_entropy expects a dict of 'image' and "
      "'label': hand over a loss_fn of your own for other batches."
    )
  logits = model(batch["image"])
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch["label"]
  )
  correct = jnp.argmax(logits, axis=-1) == batch["label"]
  return jnp.mean(losses), {"accuracy": jnp.mean(correct.astype(losses.dtype))}


def _checked(result: Any) -> tuple[jax.Array, Metrics]:
  """Check what a loss function returned; raises ValueError."""
  pair = isinstance(result, tuple) and len(result) == 2
  if not pair or not isinstance(result[1], Mapping):
    raise ValueError(
      f"loss_fn returned {type(result).__name__}; expected a pair (loss, "
      "figures) of the mean loss and a dict, perhaps empty: return loss, {}"
    )
  for name, value in {"loss": result[0], **result[1]}.items():
    if jnp.shape(value) != ():
      raise ValueError(
        f"{name!r} of loss_fn has the shape {jnp.shape(value)}; expected one "
        "number, such as a mean over the batch."
      )
  return result


def stacked_probabilities(
  logits: state_lib.StackedLogits, temperature: jax.Array
) -> state_lib.StackedLogits:
  """Compute the probabilities of all tensors, as their logits are stacked."""
  return {
    count: bit_choice.probabilities(rows, temperature)
    for count, rows in logits.items()
  }


def _spread(logits: state_lib.StackedLogits) -> jax.Array:
  """Give the mean over searched tensors of highest minus lowest logit."""
  spreads = [
    jnp.max(rows, axis=1) - jnp.min(rows, axis=1)
    for count, rows in logits.items()
    if count > 1
  ]
  return jnp.mean(jnp.concatenate(spreads)) if spreads else jnp.zeros(())


def search_step(
  parts: StepParts,
  state: state_lib.TrainState,
  batch: Any,
  heldout: Any = None,
) -> tuple[state_lib.TrainState, Metrics]:
  """Make one step of the search.

  Joint (`heldout` None): weights and logits move by one aligned gradient of two
  passes on `batch`. Bilevel: weights by two passes on `batch`, then logits by
  two passes on `heldout`, where the weights are perturbed by that batch's own
  gradient; both halves use one radius.

  With an ascent from earlier steps the second pass falls away, and the first is
  at the displaced weights: loss and figures are those there.
  With no candidate to choose from and no budget it trains a fixed policy.

  Args:
    parts: the constants.
    state: the state before.
    batch: a raw batch for weights.
    heldout: a raw batch for logits, or None.

  Returns:
    The state after, and figures of the step, each of shape ().
  """
  temperature = parts.temperature(state.step)
  key = jax.random.fold_in(state.key, state.step)
  rest = state.rest

  def loss(params, rest, data):
    model = state_lib.merge_model(parts.graphdef, params, rest)
    value, figures = _checked(parts.loss_fn(model, data))
    return value, (figures, state_lib.split_model(model)[2])

  one_pass = outline.outlined(jax.value_and_grad(loss, has_aux=True))

  def aligned(params, raw, key):
    """Give the aligned gradient at params and all that came with it.

    In the place of the logits it is that of the stacked probabilities.
    """
    data = parts.prepare(key, raw)
    mixed = stacked_probabilities(params.logits, temperature)
    stacked, unstacked = params, parts.layout.unstack(mixed)
    params = params._replace(logits=unstacked)
    point = sharpness.ascent_point(state.sharpness, stacked)
    displaced = point is not stacked
    point = point._replace(logits=unstacked)
    (value, (figures, new_rest)), gradients = one_pass(point, rest, data)
    figures = {"loss": value, **figures}
    passes = ["first"]

    def second_pass(point):
      passes.append("second")
      (value, _), gradients = one_pass(point, rest, data)
      return value, gradients

    combined, new_sharpness = parts.transform.update(
      gradients,
      state.sharpness,
      params,
      value=value,
      value_and_grad_fn=second_pass,
    )
    if len(passes) > 1:
      point = perturbation.displace(
        params,
        gradients,
        new_sharpness.coefficient,
        perturbation.resolve_mask(state_lib.PERTURBED, params),
      )
    if displaced or len(passes) > 1:
      figures["codes_changed"] = code_changes.changed_codes(
        parts.graphdef, rest, params, point
      )
    combined = combined._replace(logits=parts.layout.stack(combined.logits))
    return combined, new_sharpness, new_rest, figures

  def move_logits(logits, slopes, optimizer, multiplier, slope_sum):
    """Move the logits by dL/dp and the budget's penalty."""
    mixed, pull_back = jax.vjp(
      lambda logits: stacked_probabilities(logits, temperature), logits
    )
    # What moving the whole mixture to a candidate would change, to first order.
    slope_sum = jax.tree.map(
      lambda total, slope, p: (
        total + slope - jnp.sum(p * slope, axis=1, keepdims=True)
      ),
      slope_sum,
      slopes,
      mixed,
    )
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
      gradients, optimizer, logits
    )
    return (
      optax.apply_updates(logits, updates),
      optimizer,
      multiplier,
      slope_sum,
    )

  params = state.params
  gradients, new_sharpness, new_rest, figures = aligned(params, batch, key)
  trained = {"weights": params.weights, "quantizers": params.quantizers}
  updates, optimizer = parts.optimizer.update(
    {"weights": gradients.weights, "quantizers": gradients.quantizers},
    state.optimizer,
    trained,
  )
  params = state_lib.Params(
    **optax.apply_updates(trained, updates), logits=params.logits
  )
  before = (
    params.logits,
    state.logit_optimizer,
    state.multiplier,
    state.slope_sum,
  )

  def from_gradients(gradients, carried):
    logits, optimizer, multiplier, slope_sum = carried
    return move_logits(logits, gradients, optimizer, multiplier, slope_sum)

  if heldout is None:
    after = from_gradients(gradients.logits, before)
  else:
    other_key = jax.random.fold_in(key, 1)

    def on_heldout(carried):
      gradients, _, _, figures = aligned(params, heldout, other_key)
      return from_gradients(gradients.logits, carried), figures["loss"]

    after, heldout_loss = jax.lax.cond(
      state.step % parts.logits_every == 0,
      on_heldout,
      lambda carried: (carried, jnp.full((), jnp.nan, figures["loss"].dtype)),
      before,
    )
    figures["heldout_loss"] = heldout_loss
  logits, logit_optimizer, multiplier, slope_sum = after
  new_state = state_lib.TrainState(
    step=state.step + 1,
    key=state.key,
    params=params._replace(logits=logits),
    rest=new_rest,
    sharpness=new_sharpness,
    optimizer=optimizer,
    logit_optimizer=logit_optimizer,
    multiplier=multiplier,
    slope_sum=slope_sum,
  )
  figures |= _state_figures(parts, new_state, temperature)
  return new_state, figures


def _state_figures(
  parts: StepParts, state: state_lib.TrainState, temperature: jax.Array
) -> Metrics:
  measured = sharpness.diagnostics(state.sharpness)
  figures = {
    "gap": measured["raw_gap"],
    "smoothed_gap": measured["gap"],
    "radius": measured["radius"],
    "perturbed_loss": measured["perturbed_value"],
    "cosine": measured["cosine"],
    "gradient_norm": measured["gradient_norm"],
    "perturbed_gradient_norm": measured["perturbed_gradient_norm"],
    "temperature": temperature,
    "logit_spread": _spread(state.params.logits),
  }
  if parts.expected_use is not None:
    use = parts.expected_use(
      stacked_probabilities(state.params.logits, temperature)
    )
    for index in range(state.multiplier.size):
      suffix = "" if index == 0 else f"_{index}"
      figures[f"expected_use{suffix}"] = use[index]
      figures[f"multiplier{suffix}"] = state.multiplier[index]
  return figures


def compile_step(
  parts: StepParts, mesh: Mesh, *, bilevel: bool
) -> Callable[..., tuple[state_lib.TrainState, Metrics]]:
  """Make the jitted step over a mesh, with its state donated.

  Args:
    parts: the constants.
    mesh: of the axis `data`; a single device is the special case of one.
    bilevel: whether the step takes a held-out batch beside its batch.

  Returns:
    A function of (state, batch) or (state, batch, heldout) to (state, figures).
  """
  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)

  def step(state, *batches):
    return search_step(parts, state, *batches)

  return jax.jit(
    step,
    in_shardings=(whole, split, split) if bilevel else (whole, split),
    out_shardings=whole,
    donate_argnums=0,
    compiler_options=lowering.compiler_options(),
  )
