"""The form whose displacement follows the gradient of the step itself."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from asga_jax.sharpness import alignment, arguments, core, perturbation
from asga_jax.sharpness import settings as settings_lib
from asga_jax.sharpness import state as state_lib

PyTree = Any


def transformation(settings: settings_lib.Settings) -> core.Transformation:
  """Make the transformation of two passes a step, or at every k-th step."""
  axis_name, every = settings.axis_name, settings.ascent_every

  def init(params: PyTree) -> state_lib.AsgaState:
    return core.initial_state(settings, params)

  def step(
    grads: PyTree,
    state: state_lib.AsgaState,
    params: PyTree,
    value: Any,
    value_and_grad_fn: Any,
    look: core.Look,
  ) -> tuple[PyTree, state_lib.AsgaState, Any]:
    if axis_name is not None:
      arguments.check_varying(grads, axis_name)
    arguments.check_call(grads, params, value, value_and_grad_fn)
    rho = core.radius_for(settings, state)
    loss = jnp.asarray(value, rho.dtype)
    leaf_mask = perturbation.resolve_mask(settings.mask, params)

    def both_passes():
      found = _both_passes(
        settings, grads, params, loss, rho, leaf_mask, value_and_grad_fn, look
      )
      return arguments.vary(found, axis_name)

    def first_pass_alone():
      found = _first_pass_alone(grads, params, loss, leaf_mask, look)
      return arguments.vary(found, axis_name)

    if isinstance(every, int) and every == 1:
      found = both_passes()
    else:
      due = state.count % every == 0
      found = jax.lax.cond(due, both_passes, first_pass_alone)
      rho = jnp.where(due, rho, math.nan)
    if axis_name is not None:
      found = jax.lax.pmean(found, axis_name)
    combined, measured, seen = found
    state = core.next_state(
      settings, state, measured, rho=rho, gap=measured.raw_gap
    )
    return combined, state, seen

  return core.make(init, step)


def _both_passes(
  settings: settings_lib.Settings,
  grads: PyTree,
  params: PyTree,
  loss: jax.Array,
  rho: jax.Array,
  leaf_mask: PyTree,
  value_and_grad_fn: arguments.ValueAndGradFn,
  look: core.Look,
) -> tuple[PyTree, core.Measured, Any]:
  """Take the second gradient, compare it with the first and combine them."""
  first = perturbation.select(grads, leaf_mask)
  norm = perturbation.global_norm(first).astype(rho.dtype)
  coefficient, align_used = perturbation.step_coefficient(
    norm, rho, settings.align, cap_align=settings.cap_align
  )
  # The gradient at a leaf that is the same on all shards comes summed.
  params = arguments.vary(params, settings.axis_name)
  displaced = perturbation.displace(params, grads, coefficient, leaf_mask)
  perturbed_value, perturbed_grads = arguments.second_pass(
    value_and_grad_fn, displaced, grads, params
  )
  perturbed_loss = jnp.asarray(perturbed_value, rho.dtype)
  second = perturbation.select(perturbed_grads, leaf_mask)
  other_norm = perturbation.global_norm(second).astype(rho.dtype)
  inner = perturbation.inner_product(first, second).astype(rho.dtype)
  if settings.gap_from_gradients:
    rise = coefficient * (norm**2 + inner) / 2
  else:
    rise = perturbed_loss - loss
  measured = core.Measured(
    raw_gap=rise + align_used * inner,
    value=loss,
    perturbed_value=perturbed_loss,
    cosine=alignment.cosine(inner, norm, other_norm),
    gradient_norm=norm,
    perturbed_gradient_norm=other_norm,
    coefficient=coefficient,
  )
  combined = _combine(settings, grads, perturbed_grads, leaf_mask)
  return combined, measured, look(displaced)


def _combine(
  settings: settings_lib.Settings,
  grads: PyTree,
  perturbed_grads: PyTree,
  leaf_mask: PyTree,
) -> PyTree:
  if settings.combination == "mean":
    return alignment.mean_gradient(grads, perturbed_grads)
  if settings.combination == "perturbed":
    return alignment.perturbed_gradient(grads, perturbed_grads)
  assert settings.gsam_alpha is not None
  return alignment.gsam_gradient(
    grads, perturbed_grads, settings.gsam_alpha, leaf_mask
  )


def _first_pass_alone(
  grads: PyTree,
  params: PyTree,
  loss: jax.Array,
  leaf_mask: PyTree,
  look: core.Look,
) -> tuple[PyTree, core.Measured, Any]:
  """Return the gradient as it is; what a second pass measures is NaN."""
  nothing = jnp.full_like(loss, math.nan)
  norm = perturbation.global_norm(perturbation.select(grads, leaf_mask))
  measured = core.Measured(
    raw_gap=nothing,
    value=loss,
    perturbed_value=nothing,
    cosine=nothing,
    gradient_norm=norm.astype(loss.dtype),
    perturbed_gradient_norm=nothing,
    coefficient=jnp.zeros_like(loss),
  )
  unseen = jax.tree.map(
    lambda x: jnp.full(x.shape, math.nan, x.dtype), jax.eval_shape(look, params)
  )
  return grads, measured, unseen
