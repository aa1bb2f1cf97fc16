"""What a transformation is built with, and the checks of it."""

import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from asga_jax import checks
from asga_jax.sharpness import perturbation
from asga_jax.sharpness import radius as radius_lib

COMBINATIONS = ("mean", "perturbed", "gsam", "plain")
ASCENTS = ("fresh", "previous", "momentum")


class Settings(NamedTuple):
  """The arguments of `asga_transform`; None where one was not given."""

  rho_max: radius_lib.Rho = 0.05
  phi: jax.typing.ArrayLike | None = None
  align: jax.typing.ArrayLike = 1e-3
  radius: str = "adaptive"
  combination: str = "mean"
  gap_ema: jax.typing.ArrayLike | None = None
  cap_align: bool = True
  rho_min: radius_lib.Rho | None = None
  gsam_alpha: jax.typing.ArrayLike | None = None
  mask: perturbation.Mask = None
  gap_from_gradients: bool = False
  axis_name: str | None = None
  ascent: str = "fresh"
  ascent_every: jax.typing.ArrayLike = 1


# What stands for None where the setting is read.
DEFAULTS = {"phi": 2e-3, "gap_ema": 0.0, "rho_min": 0.0, "gsam_alpha": 0.01}
# A setting that is not always read -> which other one decides, and its values.
_READ_WITH = {
  "phi": ("radius", ("adaptive",)),
  "gap_ema": ("radius", ("adaptive", "growing")),
  "rho_min": ("radius", ("growing",)),
  "gsam_alpha": ("combination", ("gsam",)),
}
# Of numbers that may be left out.
_BOUNDS: dict[str, Any] = {
  "phi": {"above": 0},
  "gap_ema": {"least": 0, "below": 1},
  "gsam_alpha": {"least": 0},
}
# Read without a perturbation too: which leaves are measured, and where.
_READ_BY_PLAIN = ("combination", "mask", "axis_name")


def filled(settings: Settings) -> Settings:
  """Check settings and put defaults in the place of None.

  Raises:
    ValueError: names the argument, its value and what is accepted.
  """
  _check(settings)
  missing: dict[str, Any] = {
    name: default
    for name, default in DEFAULTS.items()
    if getattr(settings, name) is None
  }
  return settings._replace(**missing)


def unread(settings: Settings) -> Mapping[str, str]:
  """Find what was given and is not read.

  Without a perturbation nearly nothing is, and a value equal to its default
  passes as not given.

  Returns:
    The setting's name -> the condition under which it would be read.
  """
  found = {}
  if settings.combination == "plain":
    for name, default in Settings._field_defaults.items():
      value = getattr(settings, name)
      # An array, traced or not, is what optax.inject_hyperparams makes.
      compared = name not in _READ_BY_PLAIN and not isinstance(value, jax.Array)
      if compared and value != default:
        found[name] = "another combination"
    return found
  for name, (other, values) in _READ_WITH.items():
    given = getattr(settings, name) is not None
    if given and getattr(settings, other) not in values:
      found[name] = f"{other}={' or '.join(map(repr, values))}"
  return found


def _check_radius(name: str, value: Any, **bounds: Any) -> None:
  """Check a radius, or that its schedule gives one at the first step."""
  if not callable(value):
    checks.number(name, value, **bounds)
    return
  try:
    first = value(np.int32(0))
  except Exception as error:
    raise ValueError(
      f"{name}={checks.short(value)}; expected a number, or a schedule, which"
      f" gives one for a step count: {checks.reason(error)}"
    ) from error
  checks.number(f"{name} of the first step", first)


def _check(settings: Settings) -> None:
  s = settings
  checks.choice("radius", s.radius, radius_lib.KINDS)
  checks.choice("combination", s.combination, COMBINATIONS)
  checks.choice("ascent", s.ascent, ASCENTS)
  _check_radius("rho_max", s.rho_max, above=0)
  if s.rho_min is not None:
    ceiling: Any = (
      {"most": s.rho_max} if isinstance(s.rho_max, numbers.Real) else {}
    )
    _check_radius("rho_min", s.rho_min, least=0, **ceiling)
  checks.number("align", s.align, least=0)
  for name, bounds in _BOUNDS.items():
    if getattr(s, name) is not None:
      checks.number(name, getattr(s, name), **bounds)
  checks.flag("cap_align", s.cap_align)
  checks.flag("gap_from_gradients", s.gap_from_gradients)
  perturbation.check_mask(s.mask)
  if s.axis_name is not None:
    checks.text("axis_name", s.axis_name, "None or the name of one mesh axis")
  checks.number("ascent_every", s.ascent_every, least=1, whole=True)
  for name, needed in unread(s).items():
    other, _, _ = needed.partition("=")
    here = f"{other}={getattr(s, other)!r}" if other in s._fields else ""
    raise ValueError(
      f"{name}={getattr(s, name)!r} is not read with "
      f"{here or 'combination=' + repr(s.combination)}; leave it out, or take "
      f"{needed}"
    )
  if s.ascent != "fresh":
    _check_one_pass(s)


def _check_one_pass(settings: Settings) -> None:
  # One gradient a step leaves nothing to combine, skip or hold by shard.
  for name, accepted in (
    ("combination", ("mean", "perturbed")),
    ("axis_name", (None,)),
    ("ascent_every", (1,)),
    ("cap_align", (True,)),
    ("gap_from_gradients", (False,)),
  ):
    value = getattr(settings, name)
    if not isinstance(value, jax.core.Tracer) and value not in accepted:
      raise ValueError(
        f"ascent={settings.ascent!r} with {name}={value!r}; expected one of "
        f"{list(accepted)}, or ascent='fresh'"
      )
