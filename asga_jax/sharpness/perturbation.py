"""The perturbation: which leaves move, how far, and the norms it takes.

Sums run in float32, or in float64 where a leaf is float64; a bfloat16 leaf is
widened before it is squared or moved.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from asga_jax import checks
from asga_jax.xla import reductions

PyTree = Any
Mask = PyTree | Callable[[PyTree], PyTree] | None


def wide_dtype(*leaves: jax.typing.ArrayLike) -> jnp.dtype:
  """Return the dtype of sums: float64 if a leaf has its width, else float32."""
  double = (jnp.float64, jnp.complex128)
  wide = any(jnp.result_type(leaf) in double for leaf in leaves)
  return jnp.dtype(jnp.float64 if wide else jnp.float32)


def leaf_dtype(*leaves: jax.typing.ArrayLike) -> jnp.dtype:
  """Return the dtype to move a leaf in: that of sums, complex if it is."""
  dtype = wide_dtype(*leaves)
  if not any(jnp.iscomplexobj(leaf) for leaf in leaves):
    return dtype
  return jnp.dtype(jnp.complex128 if dtype == jnp.float64 else jnp.complex64)


def is_moved(leaf: jax.typing.ArrayLike) -> bool:
  """Say whether a leaf has a gradient: whole numbers and truths have none."""
  return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def check_mask(mask: Mask) -> None:
  """Check that a mask which is not a callable holds booleans only.

  Args:
    mask: None, a callable, or a pytree.

  Raises:
    ValueError: a leaf is not a Python or numpy boolean. An array or a traced
      value cannot be one, because the mask decides what is compiled.
  """
  if mask is None or callable(mask):
    return
  if not jax.tree.leaves(mask):
    accepted = "None, a pytree of True and False, or a callable that gives one"
    raise checks.refusal("mask", mask, accepted)
  for path, leaf in jax.tree.leaves_with_path(mask):
    if not isinstance(leaf, (bool, np.bool_)):
      raise ValueError(
        f"mask{jax.tree_util.keystr(path)}={checks.short(leaf)} is not a"
        " boolean; a mask is"
        " None, a pytree of True and False with the structure of params or of"
        " a prefix of it, or a callable that returns one"
      )


def resolve_mask(mask: Mask, params: PyTree) -> PyTree:
  """Spread a mask over the parameters, one boolean a leaf.

  Args:
    mask: None (all leaves of floats), a pytree of booleans of the structure of
      `params` or a prefix of it, or a callable from params to such a pytree.
    params: the parameters.

  Returns:
    Booleans in the structure of `params`; True where a leaf is perturbed.

  Raises:
    ValueError: the mask holds something else than booleans, does not fit the
      parameters, or selects no leaf.
  """
  if mask is None:
    return jax.tree.map(is_moved, params)
  tree = mask(params) if callable(mask) else mask
  check_mask(tree)
  try:
    spread = jax.tree.map(
      lambda flag, part: jax.tree.map(
        lambda leaf: bool(flag) and is_moved(leaf), part
      ),
      tree,
      params,
    )
  except (ValueError, TypeError) as error:
    raise ValueError(
      f"mask={tree!r} is neither of the structure of params nor a prefix of"
      f" it: {error}"
    ) from error
  if not any(jax.tree.leaves(spread)):
    raise ValueError(
      f"mask={tree!r} selects no leaf of params; at least one must be True"
      " (combination='plain' trains without a perturbation)"
    )
  return spread


def select(tree: PyTree, mask: PyTree) -> list[jax.Array]:
  """Return the leaves of `tree` whose flag in `mask` is True."""
  flags = jax.tree.leaves(mask)
  leaves = jax.tree.leaves(tree)
  return [leaf for flag, leaf in zip(flags, leaves, strict=True) if flag]


def inner_product(left: PyTree, right: PyTree) -> jax.Array:
  """Return the sum over all leaves of the elementwise product.

  A complex leaf counts as its real and its imaginary part.

  Args:
    left: a pytree of arrays.
    right: a pytree of the same structure and shapes.

  Returns:
    shape=(), dtype=float32, or float64 where a leaf is float64.
  """
  dtype = wide_dtype(*jax.tree.leaves(left), *jax.tree.leaves(right))

  def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    if not (jnp.iscomplexobj(a) or jnp.iscomplexobj(b)):
      return a.astype(dtype) * b.astype(dtype)
    return jnp.real(jnp.conj(a) * b).astype(dtype)

  products = jax.tree.leaves(jax.tree.map(multiply, left, right))
  return reductions.total(products) if products else jnp.zeros((), dtype)


# Tries, the scale of the last one, and the sum of squares that it gave.
_Carry: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]


def global_norm(tree: PyTree) -> jax.Array:
  """Return the l2 norm over all leaves; shape=(), dtype as inner_product.

  Of any scale: where squares leave the range of their type, they are taken
  again of leaves that are moved towards its middle by a power of two.
  """
  leaves = jax.tree.leaves(tree)
  if not leaves:
    return inner_product(tree, tree)
  dtype = wide_dtype(*leaves)
  limits = jnp.finfo(dtype)
  # Its square is a number too: of constant leaves XLA takes it by itself.
  middle = jnp.asarray(2.0 ** (limits.maxexp // 2 - 1), dtype)

  def is_left(carry: _Carry) -> jax.Array:
    tries, _, square = carry
    # Below, squares lose digits.
    usual = (square > limits.tiny / limits.eps) & (square < jnp.inf)
    return (tries == 0) | ((tries == 1) & ~usual)

  # A loop, since a second branch would compile all squares twice.
  def take(carry: _Carry) -> _Carry:
    tries, scale, square = carry
    again = jnp.where(square > 1, 1 / middle, middle)
    scale = jnp.where(tries == 0, scale, again)
    kinds = [x.dtype if jnp.iscomplexobj(x) else dtype for x in leaves]
    scaled = [
      leaf.astype(kind) * scale.astype(kind)
      for leaf, kind in zip(leaves, kinds, strict=True)
    ]
    return tries + 1, scale, inner_product(scaled, scaled)

  # Of no elements: zero, and different on each shard where a leaf is.
  none = [leaf.reshape(-1)[:0] for leaf in leaves]
  zero = inner_product(none, none)
  start = zero.astype(jnp.int32), 1 + zero, zero
  _, scale, square = jax.lax.while_loop(is_left, take, start)
  return jnp.sqrt(square) / scale


def safe_divide(numerator: jax.Array, divisor: jax.Array) -> jax.Array:
  """Divide by a norm or its square; 0 where that is not positive (or NaN)."""
  positive = divisor > 0
  return jnp.where(positive, numerator / jnp.where(positive, divisor, 1), 0)


def step_coefficient(
  norm: jax.Array,
  rho: jax.Array,
  align: jax.typing.ArrayLike,
  *,
  cap_align: bool = True,
) -> tuple[jax.Array, jax.Array]:
  """Return c and λ of the displacement δ = c·g with c = ρ/‖g‖ − λ.

  Uncapped, δ turns into a descent where ‖g‖ > ρ/λ; capped, λ is at most
  ρ/(2‖g‖), so that c is at least half of ρ/‖g‖. A zero gradient gives c = 0.

  Args:
    norm: ‖g‖. shape=(), floating.
    rho: ρ. shape=(), the dtype of `norm`.
    align: λ, the strength of the implicit alignment, >= 0.
    cap_align: whether λ is capped.

  Returns:
    c and the λ used, each shape=() with the dtype of `norm`.

  Source: SAGM (Wang et al., CVPR 2023), eq. 8, for the uncapped form; the cap
  is this project's.
  """
  align = jnp.asarray(align, norm.dtype)
  whole = safe_divide(rho, norm)
  if cap_align:
    align = jnp.where(norm > 0, jnp.minimum(align, whole / 2), align)
  return jnp.where(norm > 0, whole - align, 0), align


def displace(
  params: PyTree, grads: PyTree, coefficient: jax.Array, mask: PyTree
) -> PyTree:
  """Move the perturbed leaves by c·g, the others not.

  At a complex leaf JAX's gradient is the conjugate of the direction in which
  the loss rises, so there it is c times the conjugate.

  Args:
    params: the parameters.
    grads: the gradient at `params`, in the same structure.
    coefficient: c. shape=(), floating.
    mask: booleans in the structure of `params`.

  Returns:
    The displaced parameters. A perturbed leaf is float32 or better whatever
    its own dtype: a radius shared by millions of weights moves each by less
    than half of the spacing of bfloat16. The others are as they were.
  """

  def move(flag: bool, param: jax.Array, grad: jax.Array) -> jax.Array:
    if not flag:
      return param
    dtype = leaf_dtype(param, grad)
    step = coefficient.astype(dtype) * jnp.conj(grad).astype(dtype)
    return param.astype(dtype) + step

  return jax.tree.map(move, mask, params, grads)


def cast_as(grads: PyTree, params: PyTree) -> PyTree:
  """Give gradients taken at widened parameters the parameters' dtypes."""
  return jax.tree.map(
    lambda g, p: g.astype(p.dtype) if is_moved(p) else g, grads, params
  )
