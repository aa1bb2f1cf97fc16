"""An ascent direction from earlier steps, so that a step needs one gradient.

The gradient is taken at θ + c·m, where m is the gradient of the step before, or
an exponential average of gradients, over the perturbed leaves. The loss at θ
itself is never computed, so the gap is known to first order only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asga_jax.sharpness import perturbation

PyTree = Any

KINDS = ("fresh", "previous", "momentum")
# Weight of the past in m.
DECAY = {"previous": 0.0, "momentum": 0.9}


class Ascent(NamedTuple):
  """The displacement of the next step, δ = c·m."""

  # m, float32 or float64; optax.MaskedNode at leaves that are not perturbed.
  direction: PyTree
  norm: jax.Array  # ‖m‖, shape=(), dtype=float32
  coefficient: jax.Array  # c, shape=(), dtype=float32


def initial(params: PyTree, leaf_mask: PyTree, dtype: jnp.dtype) -> Ascent:
  """Give the ascent before the first step: none, m = 0."""

  def start(flag: bool, param: jax.Array) -> Any:
    if not flag:
      return optax.MaskedNode()
    return jnp.zeros(param.shape, perturbation.wide_dtype(param))

  return Ascent(
    direction=jax.tree.map(start, leaf_mask, params),
    norm=jnp.zeros((), dtype),
    coefficient=jnp.zeros((), dtype),
  )


def point(ascent: Ascent, params: PyTree) -> PyTree:
  """Move the parameters to where the step's one gradient is taken.

  Args:
    ascent: of the step; a field may be boxed, as nnx.Optimizer does.
    params: θ, in the structure that the ascent was made of.

  Returns:
    θ + c·m, each leaf in its own dtype.
  """
  coefficient = jax.tree.leaves(ascent.coefficient)[0]

  def move(param: jax.Array, part: PyTree) -> jax.Array:
    direction = jax.tree.leaves(part)
    if not direction:
      return param
    step = coefficient.astype(direction[0].dtype) * direction[0]
    return (param.astype(step.dtype) + step).astype(param.dtype)

  return jax.tree.map(move, params, ascent.direction)


def measure(
  ascent: Ascent, grads: PyTree, leaf_mask: PyTree, rho: jax.Array
) -> dict[str, jax.Array]:
  """Compare a gradient at θ + c·m with the direction m.

  Args:
    ascent: of the step.
    grads: g', the gradient at the displaced parameters.
    leaf_mask: booleans in the structure of `grads`.
    rho: ρ, shape=().

  Returns:
    rise: L(θ + δ) − L(θ) to first order, ⟨δ, g'⟩; gap: ρ⟨m, g'⟩/‖m‖, which is
    the rise without the shift of the alignment (λ cancels); both 0 where m is;
    cosine of m and g'; gradient_norm: ‖m‖; perturbed_gradient_norm: ‖g'‖.
    Each of shape=().
  """
  taken = perturbation.select(grads, leaf_mask)
  directions = jax.tree.leaves(ascent.direction)
  inner = perturbation.inner_product(directions, taken).astype(rho.dtype)
  norm = perturbation.global_norm(taken).astype(rho.dtype)
  along = perturbation.safe_divide(inner, ascent.norm)
  return dict(
    rise=ascent.coefficient * inner,
    gap=rho * along,
    cosine=perturbation.safe_divide(along, norm),
    gradient_norm=ascent.norm,
    perturbed_gradient_norm=norm,
  )


def advance(
  ascent: Ascent, grads: PyTree, leaf_mask: PyTree, decay: float
) -> Ascent:
  """Take a gradient into the direction; the coefficient is left as it is.

  Args:
    ascent: of the step before.
    grads: g'.
    leaf_mask: booleans in the structure of `grads`.
    decay: weight of the past, in [0, 1).
  """
  past, structure = jax.tree.flatten(ascent.direction)
  taken = perturbation.select(grads, leaf_mask)
  new = [grad.astype(old.dtype) for old, grad in zip(past, taken, strict=True)]
  if decay:
    new = [
      decay * old + (1 - decay) * grad
      for old, grad in zip(past, new, strict=True)
    ]
  norm = perturbation.global_norm(new).astype(ascent.norm.dtype)
  return ascent._replace(
    direction=jax.tree.unflatten(structure, new), norm=norm
  )
