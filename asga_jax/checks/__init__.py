"""Checks of what functions for users are called with: a sentence each."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Beyond these a whole number is none of JAX.
_SMALLEST, _LARGEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


def number(
  name: str,
  value: Any,
  *,
  least: float | None = None,
  above: float | None = None,
  most: float | None = None,
  below: float | None = None,
  whole: bool = False,
) -> None:
  """Check a finite number of Python, NumPy or JAX.

  Args:
    name: what the user calls it.
    value: what was given; a traced one has no value yet and is let through.
    least: what it may not be below, as the others.
    above: what it must be above.
    most: what it may not be above.
    below: what it must be below.
    whole: whether it is of a type of whole numbers.

  Raises:
    ValueError: something else; it holds name, value and what is accepted.
  """
  if isinstance(value, jax.core.Tracer):
    return
  known = [
    (sign, holds, bound)
    for sign, holds, bound in (
      (">=", operator.ge, least),
      (">", operator.gt, above),
      ("<=", operator.le, most),
      ("<", operator.lt, below),
    )
    if bound is not None
  ]
  if not _is_number(value, whole) or not all(
    holds(value, bound) for _, holds, bound in known
  ):
    told = " and ".join(f"{sign} {bound:g}" for sign, _, bound in known)
    kind = "a whole number" if whole else "a number"
    raise refusal(name, value, f"{kind} {told}".rstrip())


def _is_number(value: Any, whole: bool) -> bool:
  if isinstance(value, np.generic | np.ndarray | jax.Array):
    kinds = (jnp.integer,) if whole else (jnp.integer, jnp.floating)
    if value.shape or not any(jnp.issubdtype(value.dtype, k) for k in kinds):
      return False
  elif isinstance(value, bool) or not isinstance(
    value, int if whole else int | float
  ):
    return False
  if isinstance(value, int):
    return _SMALLEST <= value <= _LARGEST
  return bool(np.isfinite(np.asarray(value, np.float64)))


def flag(name: str, value: Any) -> None:
  """Check a switch; raises ValueError for other than True and False."""
  if not isinstance(value, bool | np.bool_):
    raise refusal(name, value, "True or False")


def text(name: str, value: Any, accepted: str) -> None:
  """Check a text that is not empty; raises ValueError otherwise."""
  if not isinstance(value, str) or not value:
    raise refusal(name, value, accepted)


def choice(name: str, value: Any, accepted: Sequence[str]) -> None:
  """Check one name of several; raises ValueError for another."""
  if not isinstance(value, str) or value not in accepted:
    raise refusal(name, value, f"one of {', '.join(map(repr, accepted))}")


def function(name: str, value: Any) -> None:
  """Check what is to be called; raises ValueError for what cannot be."""
  instance(name, value, Callable, "a function")


def instance(name: str, value: Any, kind: Any, accepted: str) -> None:
  """Check that a value is of a class; raises ValueError otherwise."""
  if not isinstance(value, kind):
    told = type(value).__name__
    raise ValueError(f"{name} is a {told}; expected {accepted}.")


def refusal(name: str, value: Any, accepted: str) -> ValueError:
  """Make the error: the argument's name, its value and what is accepted."""
  return ValueError(f"{name}={short(value)}; expected {accepted}.")


def reason(error: Exception) -> str:
  """Write what an error says in one line of another, cut where it is long."""
  return " ".join(str(error).split())[:600]


def short(value: Any) -> str:
  """Write a value in a line of an error, cut where it is long."""
  text = " ".join(repr(value).split())
  return text if len(text) <= 80 else text[:77] + "..."
