"""The methods by name, as settings of one transformation."""

import functools
from typing import Any

import optax

from asga_jax.sharpness import transform

PRESETS: dict[str, dict[str, Any]] = {
  "sgd": {"combination": "plain"},
  "sam": {"radius": "fixed", "align": 0.0, "combination": "perturbed"},
  "gsam": {"radius": "fixed", "align": 0.0, "combination": "gsam"},
  "sagm": {"radius": "fixed", "align": 1e-3, "combination": "mean"},
  "asga": {"radius": "adaptive", "align": 1e-3, "combination": "mean"},
}


def preset(
  name: str, **overrides: Any
) -> optax.GradientTransformationExtraArgs:
  """Return the transformation of one method.

    >>> from asga_jax import sharpness
    >>> tx = sharpness.preset("sagm", rho_max=0.1)
    >>> same = sharpness.sagm(rho_max=0.1)

  SAGM as it was released does not limit λ: preset("sagm", cap_align=False).

  Args:
    name: a key of `PRESETS`.
    **overrides: arguments of `asga_transform` that replace or add settings.

  Raises:
    ValueError: an unknown name, or what `asga_transform` raises.
    TypeError: `asga_transform` has no such argument.
  """
  if name not in PRESETS:
    raise ValueError(f"preset {name!r} is unknown; accepted: {list(PRESETS)}")
  return transform.asga_transform(**{**PRESETS[name], **overrides})


sgd = functools.partial(preset, "sgd")
sam = functools.partial(preset, "sam")
gsam = functools.partial(preset, "gsam")
sagm = functools.partial(preset, "sagm")
asga = functools.partial(preset, "asga")
