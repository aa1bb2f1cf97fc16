"""Draws that are compiled with few optimizations, against those with all."""

import draws
import jax
import numpy as np
import pytest

FUNCTIONS = {
  "bernoulli": lambda key, shape: jax.random.bernoulli(key, 0.3, shape),
  "normal": jax.random.normal,
  "truncated_normal": lambda key, shape: jax.random.truncated_normal(
    key, -2, 2, shape
  ),
}


@pytest.mark.parametrize(
  ("name", "shape"),
  [
    ("bernoulli", (31, 7)),
    # More than the fewest that are drawn.
    ("normal", (41, 9, 5)),
    ("truncated_normal", ()),
  ],
)
def test_the_bits_are_those_of_a_program_with_all(name, shape):
  key = jax.random.key(7)
  before = len(draws.compiled)
  found = FUNCTIONS[name](key, shape)
  new = draws.compiled[before:]
  # Nothing is compiled where a program of this size has been.
  assert new in ([], [f"jit__{name}"])
  want = jax.jit(FUNCTIONS[name], static_argnums=1)(key, shape)
  assert (found.shape, found.dtype) == (want.shape, want.dtype)
  np.testing.assert_array_equal(found, want)
  assert draws.compiled[before:] == new
