"""Draws that are compiled with few optimizations, against those with all."""

import draws
import jax
import numpy as np
import pytest

SHAPE = (31, 7)
FUNCTIONS = {
  "bernoulli": lambda key: jax.random.bernoulli(key, 0.3, SHAPE),
  "normal": lambda key: jax.random.normal(key, SHAPE),
  "truncated_normal": lambda key: jax.random.truncated_normal(
    key, -2, 2, SHAPE
  ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_bits_are_those_of_a_program_with_all(name):
  draw = FUNCTIONS[name]
  key = jax.random.key(7)
  before = len(draws.compiled)
  found = draw(key)
  assert draws.compiled[before:] == [f"jit__{name}"]
  np.testing.assert_array_equal(found, jax.jit(draw)(key))
  assert len(draws.compiled) == before + 1
