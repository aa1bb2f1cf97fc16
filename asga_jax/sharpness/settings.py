"""What a transformation is built with, and the checks of it."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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


def _check_number(
  name: str, value: Any, accepts: Callable[[float], bool], accepted: str
) -> None:
  """Check a hyper-parameter; a traced one cannot be and is let through."""
  if isinstance(value, jax.core.Tracer):
    return
  scalar = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if isinstance(value, jax.Array):
    scalar = value.shape == ()
  # NaN and infinity fail the comparison with infinity.
  if not (scalar and abs(float(value)) < float("inf") and accepts(value)):
    raise ValueError(f"{name}={value!r}; accepted: {accepted}")


def _check_choice(name: str, value: Any, accepted: Sequence[str]) -> None:
  if value not in accepted:
    raise ValueError(f"{name}={value!r}; accepted: {list(accepted)}")


def _check_bool(name: str, value: Any) -> None:
  if not isinstance(value, bool):
    raise ValueError(f"{name}={value!r}; accepted: True or False")


def _check(settings: Settings) -> None:
  s = settings
  _check_choice("radius", s.radius, radius_lib.KINDS)
  _check_choice("combination", s.combination, COMBINATIONS)
  _check_choice("ascent", s.ascent, ASCENTS)
  for name, needed in unread(s).items():
    other, _, _ = needed.partition("=")
    here = f"{other}={getattr(s, other)!r}" if other in s._fields else ""
    raise ValueError(
      f"{name}={getattr(s, name)!r} is not read with "
      f"{here or 'combination=' + repr(s.combination)}; leave it out, or take "
      f"{needed}"
    )
  if not callable(s.rho_max):
    _check_number("rho_max", s.rho_max, lambda x: x > 0, "a positive number")
  if s.rho_min is not None and not callable(s.rho_min):
    number = isinstance(s.rho_max, numbers.Real)
    ceiling: Any = s.rho_max if number else math.inf
    _check_number(
      "rho_min",
      s.rho_min,
      lambda x: 0 <= x <= ceiling,
      "0 <= rho_min <= rho_max",
    )
  positive, least = (lambda x: x > 0), (lambda x: x >= 0)
  _check_number("align", s.align, least, "a number >= 0")
  for name, accepts, accepted in (
    ("phi", positive, "a positive number"),
    ("gap_ema", lambda x: 0 <= x < 1, "a number in [0, 1)"),
    ("gsam_alpha", least, "a number >= 0"),
  ):
    if getattr(s, name) is not None:
      _check_number(name, getattr(s, name), accepts, accepted)
  _check_bool("cap_align", s.cap_align)
  _check_bool("gap_from_gradients", s.gap_from_gradients)
  perturbation.check_mask(s.mask)
  if s.axis_name is not None and not isinstance(s.axis_name, str):
    raise ValueError(
      f"axis_name={s.axis_name!r}; accepted: None or the name of one mesh axis"
    )
  _check_number(
    "ascent_every",
    s.ascent_every,
    lambda x: jnp.issubdtype(jnp.result_type(x), jnp.integer) and x >= 1,
    "a whole number of at least 1",
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
        f"ascent={settings.ascent!r} with {name}={value!r}; accepted: "
        f"{list(accepted)}, or ascent='fresh'"
      )
