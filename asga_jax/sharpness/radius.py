"""The perturbation radius ρ and the gap that drives it.

ρ is in the units of the parameters, the gap h in those of the loss.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# ρ or a bound of it: a positive number, or an optax schedule of the step count.
Rho = jax.typing.ArrayLike | Callable[[jax.Array], jax.typing.ArrayLike]

KINDS = ("adaptive", "growing", "fixed")


def at_step(rho: Rho, count: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Return the value of a radius, or of its schedule, at a step. shape=()."""
  return jnp.asarray(rho(count) if callable(rho) else rho, dtype)


def adaptive_radius(
  gap: jax.Array, *, rho_max: jax.Array, phi: jax.typing.ArrayLike
) -> jax.Array:
  """Return min(ρ_max, φ / ln(h + 1)), and ρ_max where h <= 0.

  Args:
    gap: h. shape=(), floating.
    rho_max: the largest radius. shape=(), the dtype of `gap`.
    phi: φ, positive.

  Returns:
    shape=(), the dtype of `gap`.

  Source: ASGA (Ma et al., ICML 2025).
  """
  positive = gap > 0
  log = jnp.log1p(jnp.where(positive, gap, 1))
  shrunk = jnp.minimum(rho_max, jnp.asarray(phi, gap.dtype) / log)
  return jnp.where(positive, shrunk, rho_max)


def growing_radius(
  gap: jax.Array, *, rho_max: jax.Array, rho_min: jax.Array
) -> jax.Array:
  """Return min(ρ_max, max(ρ_0, ln(h + 1))), and ρ_0 where h <= 0.

  Without the floor ρ_0 the radius decays to zero and stays there once the
  gradient norm is below 1, because then the gap is smaller than the radius.

  Args:
    gap: h. shape=(), floating.
    rho_max: the largest radius. shape=(), the dtype of `gap`.
    rho_min: the floor ρ_0. shape=(), the dtype of `gap`.

  Returns:
    shape=(), the dtype of `gap`.

  Source: a second-hand summary of ASGA (Ma et al., ICML 2025) that has the
  radius grow with the gap; the floor is this project's reading of its ρ_0.
  """
  log = jnp.log1p(jnp.maximum(gap, 0))
  return jnp.minimum(rho_max, jnp.maximum(rho_min, log))


def average_gap(
  previous: jax.Array,
  gap: jax.Array,
  gaps_seen: jax.Array,
  *,
  decay: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
  """Take one gap into the exponential average.

  The first finite gap is taken whole, so that the average is not drawn to its
  starting value; one that is not finite is dropped.

  Args:
    previous: the average so far. shape=(), floating.
    gap: h of this step. shape=(), the dtype of `previous`.
    gaps_seen: number of finite gaps so far. shape=(), int32.
    decay: weight of the past, in [0, 1); 0 keeps the newest gap alone.

  Returns:
    The new average and the new number of finite gaps.
  """
  finite = jnp.isfinite(gap)
  past = jnp.where(gaps_seen > 0, jnp.asarray(decay, gap.dtype), 0)
  averaged = past * previous + (1 - past) * gap
  return (
    jnp.where(finite, averaged, previous),
    gaps_seen + finite.astype(gaps_seen.dtype),
  )
