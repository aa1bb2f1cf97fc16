"""The checks of numbers, switches and names that users hand over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax import checks


@pytest.mark.parametrize(
  "value",
  [
    2,
    2.5,
    np.int64(2),
    np.float32(2.5),
    np.array(2),
    jnp.float32(2.5),
    jnp.bfloat16(2),
    jnp.int32(2),
  ],
)
def test_numbers_of_any_library(value):
  checks.number("rate", value, least=0, below=3)
  with pytest.raises(ValueError, match=r"^rate=.*; expected a number > 3\.$"):
    checks.number("rate", value, above=3)


@pytest.mark.parametrize("value", [2, np.int8(2), np.array(2), jnp.uint8(2)])
def test_whole_numbers_of_any_library(value):
  checks.number("steps", value, least=1, whole=True)


@pytest.mark.parametrize("value", [2.0, np.float32(2), True, "2", 2**64])
def test_what_is_no_whole_number(value):
  with pytest.raises(ValueError, match=r"steps=.*; expected a whole number"):
    checks.number("steps", value, whole=True)


@pytest.mark.parametrize(
  "value",
  [None, "2", np.nan, np.inf, 2j, np.bool_(True), jax.random.key(0), [2.0]],
)
def test_what_is_no_number(value):
  with pytest.raises(ValueError, match=r"rate=.*; expected a number >= 0 and"):
    checks.number("rate", value, least=0, most=3)


def test_a_traced_number_is_let_through():
  def twice(x):
    checks.number("rate", x, above=3)
    return 2 * x

  assert jax.jit(twice)(1.0) == 2


def test_a_long_value_is_cut():
  with pytest.raises(ValueError, match=r"^mode='x+\.\.\.; expected one of 'a'"):
    checks.choice("mode", "x" * 1000, ("a", "b"))
