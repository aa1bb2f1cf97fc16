"""Whether the adaptive radius of a run was healthy."""

from collections.abc import Sequence

import numpy as np

# Radii are float32: what differs by less is the same radius.
_TOLERANCE = 1e-6


def radius_health(
  radii: Sequence[float | None] | np.ndarray, rho_max: float
) -> dict[str, float]:
  """Measure how often the radius was capped and whether it alternated.

  A healthy adaptive radius is neither pinned to rho_max nor jumps to and fro
  between two values; the second shows as a negative lag-1 autocorrelation,
  r_1 = Σ_t (ρ_t − m)(ρ_{t+1} − m) / Σ_t (ρ_t − m)² with m the mean, over the
  steps that used a radius.

  Args:
    radii: the radius used in each step, shape [steps]; None or NaN marks a step
      without a second pass, which is passed over.
    rho_max: the cap of the radius, above 0.

  Returns:
    `steps`, the number of radii; `share_at_max`, the share of them at rho_max
    or above; `lag1_autocorrelation` in [-1, 1]; `mean`, `minimum` and
    `maximum`. The autocorrelation is NaN where it is not defined: for a
    constant radius and for fewer than 3 steps. Without any radius all but
    `steps` are NaN.

  Raises:
    ValueError: if rho_max is not above 0 or `radii` has more than one axis.
  """
  if not rho_max > 0:
    raise ValueError(f"rho_max is {rho_max}; it must be above 0")
  values = np.asarray(radii, dtype=np.float64)
  if values.ndim != 1:
    raise ValueError(f"radii has shape {values.shape}; it must be [steps]")
  known = values[np.isfinite(values)]
  health = dict.fromkeys(
    ("share_at_max", "lag1_autocorrelation", "mean", "minimum", "maximum"),
    float("nan"),
  )
  health["steps"] = float(known.size)
  if not known.size:
    return health
  at_max = known >= rho_max * (1 - _TOLERANCE)
  health["share_at_max"] = float(np.mean(at_max))
  health["mean"] = float(np.mean(known))
  health["minimum"] = float(np.min(known))
  health["maximum"] = float(np.max(known))
  if known.size >= 3 and np.ptp(known) > _TOLERANCE * np.max(np.abs(known)):
    deviation = known - np.mean(known)
    health["lag1_autocorrelation"] = float(
      np.sum(deviation[:-1] * deviation[1:]) / np.sum(deviation**2)
    )
  return health
