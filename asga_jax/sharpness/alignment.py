"""How the two gradients are compared and combined into one.

g is the gradient at θ, g' the one at the displaced θ + δ. Every combination
returns a leaf in the dtype of that leaf of g, computed in float32 or better.
"""

from typing import Any

import jax
import jax.numpy as jnp

from asga_jax.sharpness import perturbation

PyTree = Any


def cosine(
  inner: jax.Array, norm: jax.Array, perturbed_norm: jax.Array
) -> jax.Array:
  """Return ⟨g, g'⟩ / (‖g‖ ‖g'‖); 0 where either norm is zero. shape=()."""
  return perturbation.safe_divide(
    perturbation.safe_divide(inner, norm), perturbed_norm
  )


def mean_gradient(grads: PyTree, perturbed_grads: PyTree) -> PyTree:
  """Return ½ (g + g') on every leaf (SAGM, Wang et al. 2023)."""

  def mean(grad: jax.Array, perturbed: jax.Array) -> jax.Array:
    if not perturbation.is_moved(grad):
      return grad
    dtype = perturbation.leaf_dtype(grad, perturbed)
    total = grad.astype(dtype) + perturbed.astype(dtype)
    return (total / 2).astype(grad.dtype)

  return jax.tree.map(mean, grads, perturbed_grads)


def perturbed_gradient(grads: PyTree, perturbed_grads: PyTree) -> PyTree:
  """Return g' on every leaf (SAM, Foret et al. 2021)."""
  return perturbation.cast_as(perturbed_grads, grads)


def orthogonal_component(
  grads: PyTree, reference: PyTree, mask: PyTree
) -> PyTree:
  """Return the part of g that is orthogonal to the reference gradient.

  g_⊥ = g − ⟨g, u⟩ u with u = r/‖r‖, over the perturbed leaves together; zero
  on the others, and zero everywhere if r is zero, which has no direction.

  Args:
    grads: g, a pytree of arrays.
    reference: r, of the same structure and shapes.
    mask: booleans of the same structure; True where a leaf is perturbed.

  Returns:
    g_⊥ in the structure of `grads`, float32 or better.

  Source: GSAM (Zhuang et al., ICLR 2022), section 4.1.
  """
  onto = perturbation.select(reference, mask)
  square = perturbation.inner_product(onto, onto)
  inner = perturbation.inner_product(perturbation.select(grads, mask), onto)
  share = perturbation.safe_divide(inner, square)

  def project(flag: bool, grad: jax.Array, base: jax.Array) -> jax.Array:
    if not flag:
      return jnp.zeros(grad.shape, perturbation.wide_dtype())
    dtype = perturbation.leaf_dtype(grad, base)
    rest = grad.astype(dtype) - share.astype(dtype) * base.astype(dtype)
    return jnp.where(square > 0, rest, 0)

  return jax.tree.map(project, mask, grads, reference)


def gsam_gradient(
  grads: PyTree,
  perturbed_grads: PyTree,
  alpha: jax.typing.ArrayLike,
  mask: PyTree,
) -> PyTree:
  """Return g' − a g_⊥ on the perturbed leaves and g' on the others.

  Args:
    grads: g, a pytree of arrays.
    perturbed_grads: g', of the same structure and shapes.
    alpha: a, >= 0.
    mask: booleans of the same structure; True where a leaf is perturbed.

  Returns:
    The combined gradient, in the structure and the dtypes of `grads`.

  Source: GSAM (Zhuang et al., ICLR 2022), algorithm 1.
  """

  def combine(
    grad: jax.Array, perturbed: jax.Array, orthogonal: jax.Array
  ) -> jax.Array:
    if not perturbation.is_moved(grad):
      return grad
    dtype = perturbation.leaf_dtype(grad, perturbed)
    step = jnp.asarray(alpha, dtype) * orthogonal
    return (perturbed.astype(dtype) - step).astype(grad.dtype)

  return jax.tree.map(
    combine,
    grads,
    perturbed_grads,
    orthogonal_component(grads, perturbed_grads, mask),
  )
