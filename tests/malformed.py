"""What functions for users are called with, and where that means nothing."""

import jax
import numpy as np
from flax import linen, nnx

X = np.ones((4, 8), np.float32)


def wrong_values():
  """Give one of each kind; new ones, since an iterator serves once."""
  return [
    None,
    True,
    0,
    3,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    b"",
    b"x",
    "é" * 1000,
    (),
    [],
    {},
    set(),
    object(),
    lambda: 0,
    1j,
    2**70,
    ...,
    slice(3),
    range(3),
    iter([X]),
    np,
    nnx.Linear,
    linen.Dense(3),
    np.float32(3),
    np.datetime64("2020"),
    np.zeros(0),
    np.zeros((2, 0)),
    np.array(["a"]),
    np.array([None]),
    np.full((4, 8), np.nan),
    np.full((4, 8), np.inf),
    np.zeros((4, 8), complex),
    np.zeros((4, 9), np.float32),
    np.zeros(8, np.float32),
    np.zeros((2, 3, 4, 8, 1), np.float32),
    jax.random.key(0),
    jax.ShapeDtypeStruct((4, 9), np.float32),
    (X, X),
    {"y": X},
    {1: X},
    [X],
  ]


def check_refused(call, fits):
  """Check that a sentence refuses all values but those that fit."""
  for wrong in wrong_values():
    if fits(wrong):
      continue
    try:
      call(wrong)
    except (ValueError, OSError, IndexError) as error:
      text = str(error)
      assert 10 < len(text) < 2500, text
      for other in ("Traceback", "jax.errors", "truth value", "\n\n"):
        assert other not in text, text
    else:
      raise AssertionError(f"{wrong!r} is taken")


# What fits: of a value of `wrong_values`, whether it may be accepted.


def nothing(x):
  return False


def none(x):
  return x is None


def flag(x):
  return isinstance(x, bool)


def text(x):
  return isinstance(x, str) and x != ""


def any_text(x):
  return isinstance(x, str)


def function(x):
  return callable(x)


def several(x):
  """Nothing, or batches that fit."""
  return empty(x) or batches(x)


def batches(x):
  """X in something that holds batches."""
  if isinstance(x, tuple | list):
    return len(x) > 0
  return hasattr(x, "__next__")


def no_items(x):
  return isinstance(x, tuple | list) and not x


def empty(x):
  return isinstance(x, tuple | list | set) and not x


def mapping(x):
  return isinstance(x, dict)


def bits(x):
  return is_number(x) and x == 3


def is_number(x):
  usual = isinstance(x, int | float | np.floating) and not isinstance(x, bool)
  return usual and abs(x) < 2**64


def number(least=-np.inf, below=np.inf, above=-np.inf):
  return lambda x: is_number(x) and least <= x < below and x > above


def whole(least=-np.inf, below=np.inf):
  return lambda x: type(x) is int and least <= x < below and x < 2**64


def either(*several):
  return lambda x: any(fits(x) for fits in several)
