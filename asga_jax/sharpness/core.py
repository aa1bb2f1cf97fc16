"""What all forms of the transformation share: the radius and the state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asga_jax.sharpness import arguments, perturbation
from asga_jax.sharpness import radius as radius_lib
from asga_jax.sharpness import settings as settings_lib
from asga_jax.sharpness import state as state_lib

PyTree = Any
Look = Callable[[PyTree], PyTree]


class Measured(NamedTuple):
  """What a step measures; see the fields of `AsgaState`. Each of shape=()."""

  raw_gap: jax.Array
  value: jax.Array
  perturbed_value: jax.Array
  cosine: jax.Array
  gradient_norm: jax.Array
  perturbed_gradient_norm: jax.Array
  coefficient: jax.Array


class Transformation(optax.GradientTransformationExtraArgs):
  """An optax transformation that lets a caller look at the displaced point.

  `update_and_look(updates, state, params, look=f, **extra_args)` is `update`
  with a third result: f(θ + δ) at the point of this update's second pass, NaN
  in its shape where the pass was skipped, and None for a form without one. So
  the displaced parameters are made once, and take no memory after the step.
  """

  update_and_look: Callable[..., tuple[PyTree, state_lib.AsgaState, Any]]


def make(
  init: Callable[[PyTree], state_lib.AsgaState],
  step: Callable[..., tuple[PyTree, state_lib.AsgaState, Any]],
) -> Transformation:
  """Make the transformation of one form.

  Args:
    init: of the parameters, to the state.
    step: of (updates, state, params, value, value_and_grad_fn, look), to what
      `Transformation.update_and_look` returns.
  """

  def checked_init(params: PyTree) -> state_lib.AsgaState:
    arguments.refuse_masked_nodes(params)
    return init(params)

  def update_and_look(
    updates: PyTree,
    state: state_lib.AsgaState,
    params: PyTree = None,
    *,
    look: Look,
    value: jax.typing.ArrayLike | None = None,
    value_and_grad_fn: Any = None,
    **extra_args: Any,
  ) -> tuple[PyTree, state_lib.AsgaState, Any]:
    del extra_args
    arguments.refuse_masked_nodes((updates, params))
    return step(updates, state, params, value, value_and_grad_fn, look)

  def update(
    updates: PyTree,
    state: state_lib.AsgaState,
    params: PyTree = None,
    **extra_args: Any,
  ) -> tuple[PyTree, state_lib.AsgaState]:
    extra_args["look"] = lambda point: None
    return update_and_look(updates, state, params, **extra_args)[:2]

  transformation = Transformation(checked_init, update)
  transformation.update_and_look = update_and_look
  return transformation


def radius_for(
  settings: settings_lib.Settings, state: state_lib.AsgaState
) -> jax.Array:
  """Compute ρ of the next update from the gap known so far. shape=()."""
  dtype = state.gap.dtype
  if settings.combination == "plain":
    return jnp.zeros((), dtype)
  largest = radius_lib.at_step(settings.rho_max, state.count, dtype)
  if settings.radius == "fixed":
    return largest
  if settings.radius == "adaptive":
    assert settings.phi is not None
    rho = radius_lib.adaptive_radius(
      state.gap, rho_max=largest, phi=settings.phi
    )
  else:
    assert settings.rho_min is not None
    floor = radius_lib.at_step(settings.rho_min, state.count, dtype)
    rho = radius_lib.growing_radius(state.gap, rho_max=largest, rho_min=floor)
  return jnp.where(state.gaps_seen > 0, rho, largest)


def initial_state(
  settings: settings_lib.Settings, params: PyTree
) -> state_lib.AsgaState:
  """Make the state before the first update."""
  dtype = perturbation.wide_dtype(*jax.tree.leaves(params))
  # One buffer a leaf, so that the state can be donated.
  names = ("gap", "radius", *Measured._fields)
  zeros: dict[str, Any] = {name: jnp.zeros((), dtype) for name in names}
  empty = state_lib.AsgaState(
    count=jnp.zeros((), jnp.int32), gaps_seen=jnp.zeros((), jnp.int32), **zeros
  )
  return empty._replace(radius=radius_for(settings, empty))


def next_state(
  settings: settings_lib.Settings,
  state: state_lib.AsgaState,
  measured: Measured,
  *,
  rho: jax.Array,
  gap: jax.Array,
) -> state_lib.AsgaState:
  """Make the state after an update.

  Args:
    settings: of the transformation.
    state: before the update.
    measured: by the update.
    rho: ρ as it was used, NaN if it was not. shape=().
    gap: h for the average, NaN if there was none. shape=().
  """
  assert settings.gap_ema is not None
  average, gaps_seen = radius_lib.average_gap(
    state.gap, gap, state.gaps_seen, decay=settings.gap_ema
  )
  return state_lib.AsgaState(
    count=optax.safe_increment(state.count),
    gaps_seen=gaps_seen,
    gap=average,
    radius=rho,
    **measured._asdict(),
  )
