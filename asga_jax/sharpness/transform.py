"""The sharpness-aware optax transformation."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from asga_jax.sharpness import alignment, arguments, perturbation
from asga_jax.sharpness import ascent as ascent_lib
from asga_jax.sharpness import radius as radius_lib
from asga_jax.sharpness import state as state_lib

PyTree = Any

# What a pass at displaced parameters measures, as fields of the state.
MEASURED = (
  "raw_gap",
  "value",
  "perturbed_value",
  "cosine",
  "gradient_norm",
  "perturbed_gradient_norm",
  "coefficient",
)
NAN = math.nan


def asga_transform(
  *,
  rho_max: radius_lib.Radius = 0.05,
  phi: jax.typing.ArrayLike = 2e-3,
  align: jax.typing.ArrayLike = 1e-3,
  radius: str = "adaptive",
  combination: str = "mean",
  gap_ema: jax.typing.ArrayLike = 0.0,
  cap_align: bool = True,
  rho_min: radius_lib.Radius = 0.0,
  gsam_alpha: jax.typing.ArrayLike = 0.01,
  mask: perturbation.Mask = None,
  gap_from_gradients: bool = False,
  axis_name: str | None = None,
  ascent: str = "fresh",
  ascent_every: jax.typing.ArrayLike = 1,
) -> optax.GradientTransformationExtraArgs:
  """Replace a gradient by its sharpness-aware combination.

  `update` receives the gradient g and the loss L at θ, computes L' and g' at
  θ + (ρ/‖g‖ − λ) g by one call of `value_and_grad_fn`, and returns g and g'
  combined, to be followed by any optimizer:

    >>> import jax, jax.numpy as jnp, optax
    >>> from asga_jax import sharpness
    >>> tx = optax.chain(
    ...   sharpness.asga_transform(rho_max=0.05, phi=2e-3, align=1e-3),
    ...   optax.sgd(0.1, momentum=0.9),
    ... )
    >>> value_and_grad_fn = jax.value_and_grad(lambda x: 0.5 * jnp.sum(x**2))
    >>> params = jnp.array([3.0, 4.0])
    >>> state = tx.init(params)
    >>> value, grads = value_and_grad_fn(params)
    >>> updates, state = tx.update(
    ...   grads, state, params, value=value,
    ...   value_and_grad_fn=value_and_grad_fn,
    ... )
    >>> params = optax.apply_updates(params, updates)
    >>> {k: round(float(v), 3) for k, v in sharpness.diagnostics(state).items()
    ...  if k in ("gap", "radius", "value", "gradient_norm")}
    {'gap': 0.251, 'radius': 0.05, 'value': 12.5, 'gradient_norm': 5.0}

  `update(grads, state, params, *, value, value_and_grad_fn)`: `value` is L,
  shape=(). `value_and_grad_fn(params) -> (loss, grads)` closes over the same
  batch and the same random draws as the first pass, and drops auxiliary
  output. It is handed the structure and the dtypes of `params`. Other extra
  arguments are ignored. With combination="plain" there is no second pass and
  all three may be left out. Each combined leaf keeps the dtype of its g.

  With `nnx.Optimizer`, `value_and_grad_fn` (and a callable mask) is handed an
  `nnx.State` of plain arrays, which `nnx.merge` takes beside the graph
  definition; it may return what `nnx.value_and_grad` returns.

  Accumulate gradients inside `value_and_grad_fn`. Under `optax.MultiSteps`,
  g is the mean over the batches so far, but L, L' and g' are those of the
  newest batch, and every batch costs a second pass.

  Under one jitted program over a sharded batch g is the global gradient. With
  `axis_name`, inside `jax.shard_map`, each shard is perturbed by its own
  gradient instead (m-sharpness, another method with other results); take it
  at `jax.lax.pcast(params, axis_name, to="varying")`. The combined gradient
  and every float in the state, the gap before it enters the radius included,
  are then means over the shards.

  Args:
    rho_max: largest radius, positive, or an optax schedule of the step count;
      the radius itself with radius="fixed". The default is SAGM's.
    phi: φ of the adaptive radius, positive. The default is this project's.
    align: λ, >= 0, the strength of the implicit alignment; SAGM's default.
    radius: "adaptive": min(rho_max, φ/ln(h+1)); "growing": ln(h+1) between
      rho_min and rho_max; "fixed": rho_max. Until a finite gap is known,
      rho_max.
    combination: "mean": ½(g+g'); "perturbed": g'; "gsam": g' less `gsam_alpha`
      times the part of g orthogonal to g' (unperturbed leaves: g'); "plain":
      g. It applies to every leaf, perturbed or not.
    gap_ema: weight of the past in the gap that enters the radius, in [0, 1).
    cap_align: limit λ to ρ/(2‖g‖), so that the displacement is an ascent;
      False gives SAGM's own form.
    rho_min: floor of the growing radius, >= 0, or a schedule.
    gsam_alpha: a of "gsam", >= 0.
    mask: which leaves are perturbed, and enter norms, products and cosine:
      None for all, a pytree of booleans with the structure of the parameters
      or a prefix of it, or a callable from parameters to one.
    gap_from_gradients: estimate h as ½⟨δ, g+g'⟩ + λ⟨g, g'⟩, δ being the
      displacement, instead of L' − L + λ⟨g, g'⟩, whose difference drowns when
      the loss is computed in bfloat16.
    axis_name: mesh axis for the per-shard form.
    ascent: "fresh": δ follows g, two passes a step. "previous", "momentum": δ
      follows the gradient of the step before, or the exponential average of
      gradients with weight 0.9 of the past, so that a step is one pass: hand
      `update` the gradient g' and the loss L' at `ascent_point(state, params)`,
      without `value_and_grad_fn`. The result is g' ("mean" and "perturbed"
      alike), the gap is ρ⟨m, g'⟩/‖m‖, its first order. The first step has no
      direction and is a plain one.
    ascent_every: with "fresh", steps from one second pass to the next; the
      result of those between is g.

  Returns:
    The transformation. `init` raises ValueError within `optax.masked` or
    `optax.partition`; `update` raises ValueError for a missing argument, and
    for a mask or second gradient that does not fit the parameters.

  Raises:
    ValueError: an argument outside what is accepted.

  References:
    SAM: Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412
    GSAM: Zhuang et al., ICLR 2022, https://arxiv.org/abs/2203.08065
    One pass by the step before: Ji et al., NeurIPS 2024 (S2-SAM); by momentum:
    Becker et al., 2024, https://arxiv.org/abs/2401.12033
    SAGM: Wang et al., CVPR 2023, https://arxiv.org/abs/2303.10353
    ASGA: Ma et al., ICML 2025
  """
  arguments.check_settings(
    rho_max=rho_max,
    phi=phi,
    align=align,
    radius=radius,
    combination=combination,
    gap_ema=gap_ema,
    cap_align=cap_align,
    rho_min=rho_min,
    gsam_alpha=gsam_alpha,
    mask=mask,
    gap_from_gradients=gap_from_gradients,
    axis_name=axis_name,
    ascent=ascent,
    ascent_every=ascent_every,
  )
  one_gradient = ascent != "fresh"

  def radius_for(state: state_lib.AsgaState) -> jax.Array:
    dtype = state.gap.dtype
    if combination == "plain":
      return jnp.zeros((), dtype)
    largest = radius_lib.at_step(rho_max, state.count, dtype)
    if radius == "adaptive":
      rho = radius_lib.adaptive_radius(state.gap, rho_max=largest, phi=phi)
    elif radius == "growing":
      floor = radius_lib.at_step(rho_min, state.count, dtype)
      rho = radius_lib.growing_radius(state.gap, rho_max=largest, rho_min=floor)
    else:
      rho = largest
    return jnp.where(state.gaps_seen > 0, rho, largest)

  def combine(grads: PyTree, perturbed: PyTree, leaf_mask: PyTree) -> PyTree:
    if combination == "mean":
      return alignment.mean_gradient(grads, perturbed)
    if combination == "perturbed":
      return alignment.perturbed_gradient(grads, perturbed)
    return alignment.gsam_gradient(grads, perturbed, gsam_alpha, leaf_mask)

  def one_pass(
    grads: PyTree, params: PyTree, loss: jax.Array
  ) -> dict[str, jax.Array]:
    leaf_mask = perturbation.resolve_mask(
      mask, grads if params is None else params
    )
    norm = perturbation.global_norm(perturbation.select(grads, leaf_mask))
    norm = norm.astype(loss.dtype)
    return dict(
      raw_gap=jnp.zeros_like(norm),
      value=loss,
      perturbed_value=loss,
      cosine=jnp.where(norm > 0, jnp.ones_like(norm), 0),
      gradient_norm=norm,
      perturbed_gradient_norm=norm,
      coefficient=jnp.zeros_like(norm),
    )

  def two_passes(
    grads: PyTree,
    params: PyTree,
    loss: jax.Array,
    value_and_grad_fn: arguments.ValueAndGradFn,
    rho: jax.Array,
  ) -> tuple[PyTree, dict[str, jax.Array]]:
    leaf_mask = perturbation.resolve_mask(mask, params)
    ascent = perturbation.select(grads, leaf_mask)
    norm = perturbation.global_norm(ascent).astype(rho.dtype)
    coefficient, align_used = perturbation.step_coefficient(
      norm, rho, align, cap_align=cap_align
    )
    if axis_name is not None:
      # The gradient at a leaf that is the same on all shards comes summed.
      params = jax.tree.map(lambda p: arguments.vary(p, axis_name), params)
    displaced = perturbation.displace(params, grads, coefficient, leaf_mask)
    perturbed_value, perturbed_grads = arguments.second_pass(
      value_and_grad_fn, displaced, grads
    )
    perturbed_loss = jnp.asarray(perturbed_value, rho.dtype)
    other = perturbation.select(perturbed_grads, leaf_mask)
    other_norm = perturbation.global_norm(other).astype(rho.dtype)
    inner = perturbation.inner_product(ascent, other).astype(rho.dtype)
    if gap_from_gradients:
      rise = coefficient * (norm**2 + inner) / 2
    else:
      rise = perturbed_loss - loss
    return combine(grads, perturbed_grads, leaf_mask), dict(
      raw_gap=rise + align_used * inner,
      value=loss,
      perturbed_value=perturbed_loss,
      cosine=alignment.cosine(inner, norm, other_norm),
      gradient_norm=norm,
      perturbed_gradient_norm=other_norm,
      coefficient=coefficient,
    )

  def skipped(
    grads: PyTree, state: state_lib.AsgaState, loss: jax.Array
  ) -> tuple[PyTree, dict[str, jax.Array]]:
    kept = {name: getattr(state, name) for name in MEASURED}
    return grads, kept | {"value": loss, "coefficient": jnp.zeros_like(loss)}

  def along_ascent(
    grads: PyTree,
    params: PyTree,
    state: state_lib.AsgaState,
    loss: jax.Array,
    rho: jax.Array,
  ) -> tuple[ascent_lib.Ascent, dict[str, jax.Array]]:
    assert isinstance(state.ascent, ascent_lib.Ascent)
    leaf_mask = perturbation.resolve_mask(mask, params)
    found = ascent_lib.measure(state.ascent, grads, leaf_mask, rho)
    moved = ascent_lib.advance(
      state.ascent, grads, leaf_mask, ascent_lib.DECAY[ascent]
    )
    return moved, dict(
      raw_gap=found["gap"],
      value=loss - found["rise"],
      perturbed_value=loss,
      cosine=found["cosine"],
      gradient_norm=found["gradient_norm"],
      perturbed_gradient_norm=found["perturbed_gradient_norm"],
      coefficient=state.ascent.coefficient,
    )

  def init_fn(params: PyTree) -> state_lib.AsgaState:
    arguments.refuse_masked_nodes(params)
    dtype = perturbation.wide_dtype(*jax.tree.leaves(params))
    # One buffer a leaf, so that the state can be donated.
    names = ("gap", "radius", *MEASURED)
    zeros: dict[str, Any] = {name: jnp.zeros((), dtype) for name in names}
    empty = state_lib.AsgaState(
      count=jnp.zeros((), jnp.int32),
      gaps_seen=jnp.zeros((), jnp.int32),
      **zeros,
    )
    empty = empty._replace(radius=radius_for(empty))
    if one_gradient:
      leaf_mask = perturbation.resolve_mask(mask, params)
      first = ascent_lib.initial(params, leaf_mask, dtype)
      empty = empty._replace(ascent=first)
    return empty

  def update_fn(
    updates: PyTree,
    state: state_lib.AsgaState,
    params: PyTree = None,
    *,
    value: jax.typing.ArrayLike | None = None,
    value_and_grad_fn: Any = None,
    **extra_args: Any,
  ) -> tuple[PyTree, state_lib.AsgaState]:
    del extra_args
    arguments.refuse_masked_nodes((updates, params))
    if axis_name is not None:
      arguments.check_varying(updates, axis_name)
    rho = radius_for(state)
    moved = state.ascent
    if combination == "plain":
      loss = jnp.asarray(state.value if value is None else value, rho.dtype)
      combined, measured = updates, one_pass(updates, params, loss)
      gap = measured["raw_gap"]
    elif one_gradient:
      arguments.check_call(
        updates, params, value, value_and_grad_fn, one_gradient=True
      )
      loss = jnp.asarray(value, rho.dtype)
      combined = updates
      moved, measured = along_ascent(updates, params, state, loss, rho)
      # Before there is a direction there is no gap.
      gap = jnp.where(measured["gradient_norm"] > 0, measured["raw_gap"], NAN)
    else:
      arguments.check_call(updates, params, value, value_and_grad_fn)
      loss = jnp.asarray(value, rho.dtype)
      due = state.count % ascent_every == 0

      def both():
        return two_passes(updates, params, loss, value_and_grad_fn, rho)

      if isinstance(ascent_every, int) and ascent_every == 1:
        combined, measured = both()
      else:
        combined, measured = jax.lax.cond(
          due, both, lambda: skipped(updates, state, loss)
        )
      gap = jnp.where(due, measured["raw_gap"], NAN)
    if axis_name is not None:
      combined, measured, gap = jax.lax.pmean(
        (combined, measured, gap), axis_name
      )
    gap, gaps_seen = radius_lib.average_gap(
      state.gap, gap, state.gaps_seen, decay=gap_ema
    )
    new_state = state_lib.AsgaState(
      count=optax.safe_increment(state.count),
      gaps_seen=gaps_seen,
      gap=gap,
      radius=rho,
      ascent=moved,
      **measured,
    )
    if isinstance(moved, ascent_lib.Ascent):
      coefficient, _ = perturbation.step_coefficient(
        moved.norm, radius_for(new_state), align, cap_align=cap_align
      )
      moved = moved._replace(coefficient=coefficient)
    return combined, new_state._replace(ascent=moved)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
