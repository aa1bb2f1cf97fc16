"""A running average of what is trained, beside the training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AverageState(NamedTuple):
  """What `track_average` carries on."""

  updates_seen: jax.Array  # shape=(), dtype=int32
  average: Any  # of the structure, shapes and dtypes of the parameters


def effective_decay(updates_seen: jax.Array, decay: float) -> jax.Array:
  """Give the decay of one update, min(decay, (1 + n) / (10 + n)).

  So a short run's average forgets where it started; the rule is that of
  TensorFlow's ExponentialMovingAverage with `num_updates`.
  """
  seen = jnp.asarray(updates_seen, jnp.float32)
  return jnp.minimum(jnp.float32(decay), (1 + seen) / (10 + seen))


def track_average(decay: float) -> optax.GradientTransformation:
  """Average the parameters that result from the updates handed through.

  It must be the last of a chain: it leaves the updates as they are.

  Args:
    decay: the most that is kept of the average at an update, in (0, 1).

  Raises:
    ValueError: a decay out of range.
  """
  if not 0 < decay < 1:
    raise ValueError(f"decay={decay}; expected above 0 and below 1.")

  def init(params):
    copied = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    return AverageState(jnp.zeros((), jnp.int32), copied)

  def update(updates, state, params):
    kept = effective_decay(state.updates_seen, decay)
    average = jax.tree.map(
      lambda old, new: (kept * old + (1 - kept) * new).astype(old.dtype),
      state.average,
      optax.apply_updates(params, updates),
    )
    return updates, AverageState(state.updates_seen + 1, average)

  return optax.GradientTransformation(init, update)


def find_average(optimizer_state: optax.OptState) -> Any:
  """Find the average in the state of a chain; None without one."""
  return optax.tree.get(optimizer_state, "average")
