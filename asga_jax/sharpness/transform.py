"""The sharpness-aware optax transformation."""

from typing import Any

import jax
import jax.numpy as jnp

from asga_jax.sharpness import arguments, core, fresh, one_pass, perturbation
from asga_jax.sharpness import radius as radius_lib
from asga_jax.sharpness import settings as settings_lib
from asga_jax.sharpness import state as state_lib

PyTree = Any


def asga_transform(
  *,
  rho_max: radius_lib.Rho = 0.05,
  phi: jax.typing.ArrayLike | None = None,
  align: jax.typing.ArrayLike = 1e-3,
  radius: str = "adaptive",
  combination: str = "mean",
  gap_ema: jax.typing.ArrayLike | None = None,
  cap_align: bool = True,
  rho_min: radius_lib.Rho | None = None,
  gsam_alpha: jax.typing.ArrayLike | None = None,
  mask: perturbation.Mask = None,
  gap_from_gradients: bool = False,
  axis_name: str | None = None,
  ascent: str = "fresh",
  ascent_every: jax.typing.ArrayLike = 1,
) -> core.Transformation:
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
  output. Other extra arguments are ignored. With combination="plain" there is
  no second pass and all three may be left out. Each combined leaf keeps the
  dtype of its g.

  `value_and_grad_fn` is handed the structure of `params`; the perturbed leaves
  are float32 (or float64) whatever their own dtype, since in bfloat16 a small
  radius over many weights would move none of them. It must take both dtypes,
  as a network does that casts its input or its parameters. One that casts its
  parameters to bfloat16 rounds the perturbation away again.

  With `nnx.Optimizer`, `value_and_grad_fn` (and a callable mask) is handed an
  `nnx.State` of plain arrays, which `nnx.merge` takes beside the graph
  definition; it may return what `nnx.value_and_grad` returns.

  Complex leaves count as their real and imaginary parts, with gradients as
  `jax.grad` gives them: δ follows the conjugate, and so must the optimizer that
  comes after (`jax.tree.map(jnp.conj, updates)`).

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
    phi: φ of radius="adaptive", positive; 2e-3, which is this project's.
    align: λ, >= 0, the strength of the implicit alignment; SAGM's default.
    radius: "adaptive": min(rho_max, φ/ln(h+1)); "growing": ln(h+1) between
      rho_min and rho_max; "fixed": rho_max. Until a finite gap is known,
      rho_max.
    combination: "mean": ½(g+g'); "perturbed": g'; "gsam": g' less `gsam_alpha`
      times the part of g orthogonal to g' (unperturbed leaves: g'); "plain":
      g. It applies to every leaf, perturbed or not.
    gap_ema: weight of the past in the gap that enters an adaptive or growing
      radius, in [0, 1); 0, the paper's form.
    cap_align: limit λ to ρ/(2‖g‖), so that the displacement is an ascent;
      False gives SAGM's own form.
    rho_min: floor of radius="growing", >= 0, or a schedule; 0.
    gsam_alpha: a of combination="gsam", >= 0; 0.01, GSAM's.
    mask: which leaves are perturbed, and enter norms, products and cosine:
      None for all of floats, a pytree of booleans with the structure of the
      parameters or a prefix of it, or a callable from parameters to one.
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
      result of those between is g, and what a second pass measures is NaN in
      their state.

  Returns:
    The transformation. `init` raises ValueError within `optax.masked` or
    `optax.partition`; `update` raises ValueError for a missing argument, and
    for a mask or second gradient that does not fit the parameters.

  Raises:
    ValueError: an argument outside what is accepted, or one that the others
      leave unread, as `phi` is with a fixed radius.

  References:
    SAM: Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412
    GSAM: Zhuang et al., ICLR 2022, https://arxiv.org/abs/2203.08065
    One pass by the step before: Ji et al., NeurIPS 2024 (S2-SAM); by momentum:
    Becker et al., 2024, https://arxiv.org/abs/2401.12033
    SAGM: Wang et al., CVPR 2023, https://arxiv.org/abs/2303.10353
    ASGA: Ma et al., ICML 2025
  """
  settings = settings_lib.filled(
    settings_lib.Settings(
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
  )
  if settings.ascent != "fresh":
    return one_pass.transformation(settings)
  if settings.combination == "plain":
    return _plain(settings)
  return fresh.transformation(settings)


def _plain(settings: settings_lib.Settings) -> core.Transformation:
  """Make the form that measures the gradient and returns it as it is."""
  axis_name = settings.axis_name

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
    rho = core.radius_for(settings, state)
    loss = jnp.asarray(state.value if value is None else value, rho.dtype)
    leaf_mask = perturbation.resolve_mask(
      settings.mask, grads if params is None else params
    )
    norm = perturbation.global_norm(perturbation.select(grads, leaf_mask))
    norm = norm.astype(loss.dtype)
    measured = core.Measured(
      raw_gap=jnp.zeros_like(norm),
      value=loss,
      perturbed_value=loss,
      cosine=jnp.where(norm > 0, jnp.ones_like(norm), 0),
      gradient_norm=norm,
      perturbed_gradient_norm=norm,
      coefficient=jnp.zeros_like(norm),
    )
    if axis_name is not None:
      found = arguments.vary((grads, measured), axis_name)
      grads, measured = jax.lax.pmean(found, axis_name)
    state = core.next_state(
      settings, state, measured, rho=rho, gap=measured.raw_gap
    )
    return grads, state, None

  return core.make(init, step)
