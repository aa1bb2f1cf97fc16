"""What a training step carries on, and how it is cut out of a network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from asga_jax import sharpness
from asga_jax.quantization import bit_choice


class Params(NamedTuple):
  """What gradients are taken of."""

  weights: nnx.State  # every nnx.Param: the only leaves that are perturbed
  quantizers: nnx.State  # steps and clipping values
  logits: nnx.State  # of the bit choices


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
  slope_sum: nnx.State


_FILTERS = (nnx.Param, bit_choice.QuantizerParameter, bit_choice.BitLogits, ...)


def split_model(
  model: nnx.Module,
) -> tuple[nnx.GraphDef, Params, nnx.State]:
  """Cuts a network into its structure, its parameters and the rest.

  Args:
    model: a network, searchable or fixed.

  Returns:
    graphdef, parameters and the rest, as states of plain arrays.
  """
  graphdef, *states = nnx.split(model, *_FILTERS)
  *params, rest = (nnx.as_pure(state) for state in states)
  return graphdef, Params(*params), rest


def merge_model(graphdef: nnx.GraphDef, params: Params, rest: nnx.State) -> Any:
  """Puts a network together again; safe within `grad` and `jit`."""
  return nnx.merge(graphdef, *params, rest, copy=True)


def set_temperature(rest: nnx.State, temperature: jax.Array) -> nnx.State:
  """Gives the rest of a network with another softmax temperature."""
  flat = nnx.to_flat_state(rest)
  return nnx.from_flat_state(
    [
      (path, temperature.astype(leaf.dtype) if _is_temperature(path) else leaf)
      for path, leaf in flat
    ]
  )


def _is_temperature(path: tuple[Any, ...]) -> bool:
  return path[-1] == "temperature" and path[-2] in ("weight", "activation")


def initial_state(
  params: Params,
  rest: nnx.State,
  *,
  key: jax.Array,
  transform: optax.GradientTransformationExtraArgs,
  optimizer: optax.GradientTransformation,
  logit_optimizer: optax.GradientTransformation,
  budgets: int,
) -> TrainState:
  """Makes the state before the first step."""
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
  )
