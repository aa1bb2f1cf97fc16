"""The methods: as functions, and by name for configurations."""

from typing import Any

import jax

from asga_jax.sharpness import core, perturbation, transform
from asga_jax.sharpness import radius as radius_lib
from asga_jax.sharpness import settings as settings_lib

# The settings of `asga_transform` that make each method.
PRESETS: dict[str, dict[str, Any]] = {
  "sgd": {"combination": "plain"},
  "sam": {"radius": "fixed", "align": 0.0, "combination": "perturbed"},
  "gsam": {"radius": "fixed", "align": 0.0, "combination": "gsam"},
  "sagm": {"radius": "fixed", "align": 1e-3, "combination": "mean"},
  "asga": {"radius": "adaptive", "align": 1e-3, "combination": "mean"},
}


def sam(
  *,
  rho_max: radius_lib.Rho = 0.05,
  mask: perturbation.Mask = None,
  gap_from_gradients: bool = False,
  axis_name: str | None = None,
  ascent: str = "fresh",
  ascent_every: jax.typing.ArrayLike = 1,
) -> core.Transformation:
  """Replace a gradient by the one at the perturbed parameters.

  g' = ∇L(θ + ρ g/‖g‖). `update` is called as that of `asga_transform`. The
  result is that of `optax.contrib.sam` with opaque_mode=True and a normalized
  adversary.

  Args:
    rho_max: the radius ρ, positive, in the units of the parameters; or an optax
      schedule of the step count.
    mask: which leaves are perturbed; see `asga_transform`, as the others.
    gap_from_gradients: how the gap is measured; it enters no radius here.
    axis_name: mesh axis for the per-shard form.
    ascent: "fresh", or "previous" or "momentum" for one pass a step.
    ascent_every: steps from one second pass to the next.

  Returns:
    The transformation.

  Raises:
    ValueError: an argument outside what is accepted.

  Source: Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412
  """
  return preset(
    "sam",
    rho_max=rho_max,
    mask=mask,
    gap_from_gradients=gap_from_gradients,
    axis_name=axis_name,
    ascent=ascent,
    ascent_every=ascent_every,
  )


def gsam(
  *,
  rho_max: radius_lib.Rho = 0.05,
  gsam_alpha: jax.typing.ArrayLike = 0.01,
  mask: perturbation.Mask = None,
  gap_from_gradients: bool = False,
  axis_name: str | None = None,
  ascent_every: jax.typing.ArrayLike = 1,
) -> core.Transformation:
  """Replace a gradient by SAM's less a part that widens the surrogate gap.

  g' − a (g − ⟨g, u⟩ u) with u = g'/‖g'‖ on the perturbed leaves, g' on the
  others. `update` is called as that of `asga_transform`.

  Args:
    rho_max: the radius ρ, positive, or an optax schedule of the step count (the
      paper's follows the learning rate).
    gsam_alpha: a, >= 0.
    mask: which leaves are perturbed; see `asga_transform`, as the others.
    gap_from_gradients: how the gap is measured; it enters no radius here.
    axis_name: mesh axis for the per-shard form.
    ascent_every: steps from one second pass to the next.

  Returns:
    The transformation.

  Raises:
    ValueError: an argument outside what is accepted.

  Source: Zhuang et al., ICLR 2022, https://arxiv.org/abs/2203.08065
  """
  return preset(
    "gsam",
    rho_max=rho_max,
    gsam_alpha=gsam_alpha,
    mask=mask,
    gap_from_gradients=gap_from_gradients,
    axis_name=axis_name,
    ascent_every=ascent_every,
  )


def sagm(
  *,
  rho_max: radius_lib.Rho = 0.05,
  align: jax.typing.ArrayLike = 1e-3,
  cap_align: bool = True,
  mask: perturbation.Mask = None,
  gap_from_gradients: bool = False,
  axis_name: str | None = None,
  ascent: str = "fresh",
  ascent_every: jax.typing.ArrayLike = 1,
) -> core.Transformation:
  """Replace a gradient by its mean with the one at the displaced parameters.

  ½ (g + g') with g' = ∇L(θ + (ρ/‖g‖ − λ) g), which draws the two gradients to
  agree. `update` is called as that of `asga_transform`.

    >>> from asga_jax import sharpness
    >>> tx = sharpness.sagm(rho_max=0.1)
    >>> as_released = sharpness.sagm(rho_max=0.1, cap_align=False)

  Args:
    rho_max: the radius ρ, positive, or an optax schedule of the step count.
    align: λ, >= 0.
    cap_align: limit λ to ρ/(2‖g‖), so that the displacement is an ascent;
      False gives the form that was released.
    mask: which leaves are perturbed; see `asga_transform`, as the others.
    gap_from_gradients: how the gap is measured; it enters no radius here.
    axis_name: mesh axis for the per-shard form.
    ascent: "fresh", or "previous" or "momentum" for one pass a step.
    ascent_every: steps from one second pass to the next.

  Returns:
    The transformation.

  Raises:
    ValueError: an argument outside what is accepted.

  Source: Wang et al., CVPR 2023, https://arxiv.org/abs/2303.10353
  """
  return preset(
    "sagm",
    rho_max=rho_max,
    align=align,
    cap_align=cap_align,
    mask=mask,
    gap_from_gradients=gap_from_gradients,
    axis_name=axis_name,
    ascent=ascent,
    ascent_every=ascent_every,
  )


def preset(name: str, **settings: Any) -> core.Transformation:
  """Return the transformation of a method that a configuration names.

  Args:
    name: a key of `PRESETS`; "sgd" returns the gradient as it is.
    **settings: arguments of `asga_transform` that replace or add to the
      method's own, so that an ablation changes a value alone.

  Raises:
    ValueError: an unknown name, or what `asga_transform` raises.
    TypeError: `asga_transform` has no such argument.
  """
  return transform.asga_transform(**_together(name, settings))


def unread_by(name: str, settings: dict[str, Any]) -> set[str]:
  """Find the settings that a method of `PRESETS`, so changed, does not read.

  Raises:
    ValueError: an unknown name.
    TypeError: `asga_transform` has no such argument.
  """
  together = settings_lib.Settings(**_together(name, settings))
  return set(settings_lib.unread(together)) & set(settings)


def _together(name: str, settings: dict[str, Any]) -> dict[str, Any]:
  if name not in PRESETS:
    raise ValueError(f"preset {name!r} is unknown; accepted: {list(PRESETS)}")
  return {**PRESETS[name], **settings}
