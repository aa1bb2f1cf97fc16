"""What a training step carries on, and how it is cut out of a network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from asga_jax import checks, sharpness
from asga_jax.quantization import (
  batch_norm,
  bit_choice,
  compute,
  fixing,
  layers,
  logit_layout,
  remembered,
)
from asga_jax.training import task_logits
from asga_jax.xla import lowering


class Params(NamedTuple):
  """What gradients are taken of."""

  weights: nnx.State  # every nnx.Param: the only leaves that are perturbed
  quantizers: nnx.State  # steps and clipping values
  # Of the bit choices: by their number of candidates n, shape=(tensors, n),
  # float32; so that a step treats all in a few operations. Where a network is
  # differentiated, a state of its probabilities stands here.
  logits: Any


# Which leaves a perturbation moves, as a prefix of Params.
PERTURBED = Params(weights=True, quantizers=False, logits=False)  # type: ignore[arg-type]


class TrainState(NamedTuple):
  """The whole of a search, or of the training of a fixed policy."""

  step: jax.Array  # shape=(), dtype=int32: steps done
  key: jax.Array  # shape=(), dtype=key: the run's; never advanced
  params: Params
  rest: nnx.State  # batch statistics, random counts, grids, temperature
  sharpness: sharpness.AsgaState
  optimizer: optax.OptState  # of weights and quantizers
  logit_optimizer: optax.OptState
  multiplier: jax.Array  # shape=(budgets,), dtype=float32
  # Sum over the steps of dL/dp of each candidate, centred; as the logits.
  slope_sum: logit_layout.StackedLogits
  # The task's part of the logits; () where there is no budget.
  task: Any = ()
  # How many steps were not finite and left out, shape=(), dtype=int32; () where
  # none may be.
  skipped: Any = ()


_FILTERS = (nnx.Param, bit_choice.QuantizerParameter, bit_choice.BitLogits, ...)


def check(state: Any) -> None:
  """Check that a state is one of a training; raises ValueError otherwise."""
  checks.instance("state", state, TrainState, "the state that a step returns")


def split_model(
  model: nnx.Module,
) -> tuple[nnx.GraphDef, Params, nnx.State]:
  """Cut a network into its structure, its parameters and the rest.

  Args:
    model: a network, searchable or fixed.

  Returns:
    graphdef, parameters and the rest, as states of plain arrays.
  """
  graphdef, *states = nnx.split(model, *_FILTERS)
  *params, rest = (nnx.as_pure(state) for state in states)
  return graphdef, Params(*params), rest


def rest_after(model: nnx.Module, params: Params, rest: nnx.State) -> nnx.State:
  """Give the rest after a call: of what there was before it, without new.

  What a call sows or keeps is of that call alone.

  Args:
    model: that was called.
    params: from which it was put together.
    rest: likewise.

  Raises:
    ValueError: the call has made a parameter; it names it.
  """
  _, after, found = split_model(model)
  known = {keys for keys, _ in nnx.to_flat_state(params.weights)}
  for keys, _ in nnx.to_flat_state(after.weights):
    if keys not in known:
      raise ValueError(
        f"the network's call makes the parameter {'/'.join(map(str, keys))!r},"
        " which could not be trained; expected it to be made with the network."
      )
  before = {keys for keys, _ in nnx.to_flat_state(rest)}
  return nnx.from_flat_state(
    [each for each in nnx.to_flat_state(found) if each[0] in before]
  )


def merge_model(graphdef: nnx.GraphDef, params: Params, rest: nnx.State) -> Any:
  """Put a network together again; safe within `grad` and `jit`."""
  return nnx.merge(graphdef, *params, rest, copy=True)


class Trainable(NamedTuple):
  """A network taken apart for training."""

  graphdef: nnx.GraphDef
  # Of the same network, whose bit choices hold probabilities.
  step_graphdef: nnx.GraphDef
  layout: logit_layout.LogitLayout
  params: Params  # with stacked logits
  rest: nnx.State


def take_apart(
  model: nnx.Module,
  *,
  freeze_batch_norm: bool = False,
  compute_dtype: str = "float32",
) -> Trainable:
  """Take a copy of a network apart, in training mode whatever its own.

  Args:
    model: a network; it is not changed.
    freeze_batch_norm: whether its norms use their running statistics, which
      then stay as they are.
    compute_dtype: what the network computes in within a step; what is put
      together again afterwards computes as before.

  Raises:
    ValueError: no module, or one without a layer that takes a dtype.
  """
  remembered.check_module(model)
  model = nnx.clone(model)
  model.train()
  if freeze_batch_norm:
    batch_norm.freeze(model)
  layers.start_watching(model)
  graphdef, params, rest = split_model(model)
  layout = logit_layout.LogitLayout.of(params.logits)
  in_step = lowering.with_fast_convolutions(fixing.holding_probabilities(model))
  if compute_dtype != "float32":
    compute.narrow(in_step, compute_dtype)
  return Trainable(
    graphdef=graphdef,
    step_graphdef=split_model(in_step)[0],
    layout=layout,
    params=params._replace(logits=layout.stack(params.logits)),
    rest=rest,
  )


def initial_state(
  params: Params,
  rest: nnx.State,
  key: jax.Array,
  *,
  transform: optax.GradientTransformationExtraArgs,
  optimizer: optax.GradientTransformation,
  logit_optimizer: optax.GradientTransformation,
  budgets: int,
  skips_nonfinite: bool = False,
) -> TrainState:
  """Make the state before the first step; `params` holds stacked logits."""
  trained = {"weights": params.weights, "quantizers": params.quantizers}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    key=key,
    params=params,
    rest=rest,
    sharpness=transform.init(params),
    optimizer=optimizer.init(trained),
    logit_optimizer=logit_optimizer.init(params.logits),
    multiplier=jnp.zeros(budgets),
    slope_sum=jax.tree.map(jnp.zeros_like, params.logits),
    task=task_logits.init(params.logits) if budgets else (),
    skipped=jnp.zeros((), jnp.int32) if skips_nonfinite else (),
  )
