"""The form whose displacement comes from earlier steps: one gradient a step.

The gradient is taken at θ + c·m, where m is the gradient of the step before, or
an exponential average of gradients, over the perturbed leaves. The loss at θ
itself is never computed, so the gap is known to first order only.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from asga_jax.sharpness import arguments, core, perturbation
from asga_jax.sharpness import settings as settings_lib
from asga_jax.sharpness import state as state_lib

PyTree = Any

# Weight of the past in m.
DECAY = {"previous": 0.0, "momentum": 0.9}


def transformation(settings: settings_lib.Settings) -> core.Transformation:
  """Make the transformation of one pass a step, at `state.ascent_point`."""

  def init(params: PyTree) -> state_lib.AsgaState:
    empty = core.initial_state(settings, params)
    leaf_mask = perturbation.resolve_mask(settings.mask, params)
    first = initial(params, leaf_mask, empty.gap.dtype)
    return empty._replace(displacement=first)

  def step(
    grads: PyTree,
    state: state_lib.AsgaState,
    params: PyTree,
    value: Any,
    value_and_grad_fn: Any,
    look: core.Look,
  ) -> tuple[PyTree, state_lib.AsgaState, Any]:
    arguments.check_call(
      grads, params, value, value_and_grad_fn, one_gradient=True
    )
    before = state.displacement
    assert isinstance(before, state_lib.Displacement)
    rho = core.radius_for(settings, state)
    loss = jnp.asarray(value, rho.dtype)
    leaf_mask = perturbation.resolve_mask(settings.mask, params)
    measured = measure(before, grads, leaf_mask, rho, loss)
    moved = advance(before, grads, leaf_mask, DECAY[settings.ascent])
    # Before there is a direction there is no gap.
    gap = jnp.where(measured.gradient_norm > 0, measured.raw_gap, math.nan)
    state = core.next_state(settings, state, measured, rho=rho, gap=gap)
    coefficient, _ = perturbation.step_coefficient(
      moved.norm, core.radius_for(settings, state), settings.align
    )
    state = state._replace(displacement=moved._replace(coefficient=coefficient))
    return perturbation.cast_as(grads, params), state, None

  return core.make(init, step)


def initial(
  params: PyTree, leaf_mask: PyTree, dtype: jnp.dtype
) -> state_lib.Displacement:
  """Give the displacement of the first step: none, m = 0."""

  def start(flag: bool, param: jax.Array) -> Any:
    if not flag:
      return optax.MaskedNode()
    return jnp.zeros(param.shape, perturbation.leaf_dtype(param))

  return state_lib.Displacement(
    direction=jax.tree.map(start, leaf_mask, params),
    norm=jnp.zeros((), dtype),
    coefficient=jnp.zeros((), dtype),
  )


def measure(
  displacement: state_lib.Displacement,
  grads: PyTree,
  leaf_mask: PyTree,
  rho: jax.Array,
  loss: jax.Array,
) -> core.Measured:
  """Compare a gradient at θ + c·m with the direction m.

  The rise of the loss is ⟨δ, g'⟩, its first order; the gap ρ⟨m, g'⟩/‖m‖ is the
  rise without the shift of the alignment (λ cancels). Both are 0 where m is.

  Args:
    displacement: of the step.
    grads: g', the gradient at the displaced parameters.
    leaf_mask: booleans in the structure of `grads`.
    rho: ρ, shape=().
    loss: L', shape=().

  Returns:
    The figures of the step; L is an estimate, and ‖m‖ stands for ‖g‖.
  """
  taken = perturbation.select(grads, leaf_mask)
  directions = jax.tree.leaves(displacement.direction)
  inner = perturbation.inner_product(directions, taken).astype(rho.dtype)
  norm = perturbation.global_norm(taken).astype(rho.dtype)
  along = perturbation.safe_divide(inner, displacement.norm)
  return core.Measured(
    raw_gap=rho * along,
    value=loss - displacement.coefficient * inner,
    perturbed_value=loss,
    cosine=perturbation.safe_divide(along, norm),
    gradient_norm=displacement.norm,
    perturbed_gradient_norm=norm,
    coefficient=displacement.coefficient,
  )


def advance(
  displacement: state_lib.Displacement,
  grads: PyTree,
  leaf_mask: PyTree,
  decay: float,
) -> state_lib.Displacement:
  """Take a gradient into the direction; the coefficient is left as it is.

  Args:
    displacement: of the step before.
    grads: g'.
    leaf_mask: booleans in the structure of `grads`.
    decay: weight of the past, in [0, 1).
  """
  past, structure = jax.tree.flatten(displacement.direction)
  taken = perturbation.select(grads, leaf_mask)
  new = [grad.astype(old.dtype) for old, grad in zip(past, taken, strict=True)]
  if decay:
    new = [
      decay * old + (1 - decay) * grad
      for old, grad in zip(past, new, strict=True)
    ]
  norm = perturbation.global_norm(new).astype(displacement.norm.dtype)
  return displacement._replace(
    direction=jax.tree.unflatten(structure, new), norm=norm
  )
