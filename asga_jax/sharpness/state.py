"""The state of the transformation, and where to find it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asga_jax import checks

PyTree = Any


class Displacement(NamedTuple):
  """That of the next step, δ = c·m, where it comes from earlier steps."""

  # m, float32 or float64; optax.MaskedNode at leaves that are not perturbed.
  direction: PyTree
  norm: jax.Array  # ‖m‖, shape=(), dtype=float32
  coefficient: jax.Array  # c, shape=(), dtype=float32


class AsgaState(NamedTuple):
  """State of `asga_transform`; float64 if a parameter is, else float32.

  After an update without a second pass (`ascent_every`), the figures that a
  second pass measures are NaN: raw_gap, perturbed_value, cosine and
  perturbed_gradient_norm; and so is the radius, which was not used.

  Attributes:
    count: number of updates made.
    gaps_seen: number of those whose gap was finite.
    gap: the gap that enters the next radius: the exponential average of the
      finite gaps, with `gap_ema=0` the newest finite gap; 0 before the first.
    raw_gap: h of the last update as it was measured.
    radius: ρ used in the last update; before the first, the one it will use.
    value: L, as given to the last update.
    perturbed_value: L', the loss at the displaced parameters.
    cosine: cos(g, g') over the perturbed leaves; 0 if either is zero.
    gradient_norm: ‖g‖ over the perturbed leaves.
    perturbed_gradient_norm: ‖g'‖ over the perturbed leaves.
    coefficient: c of the last update, which took g' at θ + c·g, or in the form
      of one pass at θ + c·m; 0 if it had no second pass.
    displacement: that of the next step in the form of one pass, else (). With
      it L is an estimate to first order, and ‖m‖ stands for ‖g‖.
  """

  count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32
  gaps_seen: jax.Array  # shape=(), dtype=int32
  gap: jax.Array  # shape=(), dtype=float32
  raw_gap: jax.Array  # shape=(), dtype=float32
  radius: jax.Array  # shape=(), dtype=float32
  value: jax.Array  # shape=(), dtype=float32
  perturbed_value: jax.Array  # shape=(), dtype=float32
  cosine: jax.Array  # shape=(), dtype=float32
  gradient_norm: jax.Array  # shape=(), dtype=float32
  perturbed_gradient_norm: jax.Array  # shape=(), dtype=float32
  coefficient: jax.Array  # shape=(), dtype=float32
  displacement: Displacement | tuple[()] = ()


def _find(opt_state: PyTree) -> AsgaState:
  nodes = jax.tree.leaves(
    opt_state, is_leaf=lambda node: isinstance(node, AsgaState)
  )
  states = [node for node in nodes if isinstance(node, AsgaState)]
  if len(states) != 1:
    raise ValueError(
      f"opt_state holds {len(states)} states of asga_transform; expected "
      "exactly one"
    )
  return states[0]


def diagnostics(opt_state: PyTree) -> dict[str, jax.Array]:
  """Return the scalars of the one AsgaState within an optimizer's state.

  Args:
    opt_state: the state of `asga_transform`, of a chain, or of anything that
      holds it, such as `nnx.Optimizer.opt_state`.

  Returns:
    Field name -> array of shape=(); see `AsgaState`.

  Raises:
    ValueError: there is none, or more than one.
  """
  # A field may be boxed, as nnx.Optimizer does: its only leaf is the array.
  return {
    name: jax.tree.leaves(field)[0]
    for name, field in _find(opt_state)._asdict().items()
    if name != "displacement"
  }


def ascent_point(opt_state: PyTree, params: PyTree) -> PyTree:
  """Return the parameters at which to take the gradient of the next step.

  With `ascent="fresh"` they are `params` themselves. With the others:

    point = ascent_point(opt_state, params)
    value, grads = value_and_grad_fn(point)
    updates, opt_state = tx.update(grads, opt_state, params, value=value)

  Args:
    opt_state: the state of `asga_transform`, or anything that holds one.
    params: θ.

  Returns:
    θ + c·m on the perturbed leaves, float32 or better whatever their own dtype
    (`update` gives the result the dtypes of `params`); the others as they are.

  Raises:
    ValueError: there is no state of the transformation, or more than one.
  """
  displacement = _find(opt_state).displacement
  if not displacement:
    return params
  # A field may be boxed, as nnx.Optimizer does.
  coefficient = jax.tree.leaves(displacement.coefficient)[0]

  def move(param: jax.Array, part: PyTree) -> jax.Array:
    direction = jax.tree.leaves(part)
    if not direction:
      return param
    if [leaf.shape for leaf in direction] != [np.shape(param)]:
      raise ValueError(f"an array of {np.shape(param)} does not fit")
    step = coefficient.astype(direction[0].dtype) * jnp.conj(direction[0])
    return param.astype(step.dtype) + step

  try:
    return jax.tree.map(move, params, displacement.direction)
  except (AttributeError, TypeError, ValueError) as error:
    raise ValueError(
      f"params={checks.short(params)}; expected the parameters that the state"
      f" was made for: {checks.reason(error)}"
    ) from error
