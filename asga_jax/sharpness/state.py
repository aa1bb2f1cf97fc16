"""The state of the transformation, and where to find it."""

from typing import Any, NamedTuple

import jax

from asga_jax.sharpness import ascent as ascent_lib

PyTree = Any


class AsgaState(NamedTuple):
  """State of `asga_transform`; float64 if a parameter is, else float32.

  After an update without a second pass (`ascent_every`), what a second pass
  measures is that of the last update that had one.

  Attributes:
    count: number of updates made.
    gaps_seen: number of those whose gap was finite.
    gap: the gap that enters the next radius: the exponential average of the
      finite gaps, with `gap_ema=0` the newest finite gap; 0 before the first.
    raw_gap: h of the last update as it was measured, finite or not.
    radius: ρ used in the last update; before the first, the one it will use.
    value: L, as given to the last update.
    perturbed_value: L', the loss at the displaced parameters.
    cosine: cos(g, g') over the perturbed leaves; 0 if either is zero.
    gradient_norm: ‖g‖ over the perturbed leaves.
    perturbed_gradient_norm: ‖g'‖ over the perturbed leaves.
    coefficient: c of the last update, which took g' at θ + c·g, or with an
      ascent from earlier steps at θ + c·m; 0 if it had no second pass.
    ascent: that of the next step; () with `ascent="fresh"`. With it L is an
      estimate to first order, and ‖m‖ stands for ‖g‖.
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
  ascent: ascent_lib.Ascent | tuple[()] = ()


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
    if name != "ascent"
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
    θ + c·m on the perturbed leaves, each in its own dtype.

  Raises:
    ValueError: there is no state of the transformation, or more than one.
  """
  ascent = _find(opt_state).ascent
  return ascent_lib.point(ascent, params) if ascent else params
