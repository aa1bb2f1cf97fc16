"""Functions kept out of line: the same numbers, compiled once."""

import re

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from asga_jax.xla import outline

X = jnp.linspace(-2.0, 3.0, 24).reshape(4, 6)


def _bend(variables, constants):
  x, scale = variables
  return jnp.tanh(scale * x) * jnp.where(constants, x, 1.0)


ARGS = ((X, jnp.float32(0.7)), X > 0)


@pytest.mark.slow
def test_outlined_gives_the_same_value_and_gradient():
  def loss(function, variables):
    return jnp.sum(function(variables, ARGS[1]) ** 2)

  for function in (outline.outlined(_bend), outline.recomputed(_bend)):
    ours = jax.jit(jax.value_and_grad(lambda v, f=function: loss(f, v)))
    theirs = jax.value_and_grad(lambda v: loss(_bend, v))
    for our, their in zip(
      jax.tree.leaves(ours(ARGS[0])),
      jax.tree.leaves(theirs(ARGS[0])),
      strict=True,
    ):
      np.testing.assert_allclose(our, their, rtol=1e-6)


def test_calls_share_one_program_on_a_cpu():
  if jax.default_backend() != "cpu":
    pytest.skip("other platforms inline")
  function = outline.outlined(lambda x: jnp.tanh(x) + jnp.cos(x) * x)

  def program(x):
    for _ in range(5):
      x = jnp.cumsum(function(x), axis=0)
    return x

  lowered = jax.jit(program).lower(X)
  assert lowered.as_text().count("stablehlo.tanh") == 1
  compiled = lowered.compile().as_text()
  assert len(re.findall(r" call\(", compiled)) == 5


def test_what_an_outlined_function_calls_is_inlined():
  if jax.default_backend() != "cpu":
    pytest.skip("other platforms inline")
  inner = jax.jit(lambda x: jnp.tanh(x) + 1)
  function = outline.outlined(lambda x: inner(inner(x)))
  compiled = jax.jit(lambda x: function(x) * 2).lower(X).compile().as_text()
  assert len(re.findall(r" call\(", compiled)) == 1


def test_recomputed_keeps_its_arguments_alone():
  def program(function):
    def loss(x):
      for _ in range(6):
        x = function((x, jnp.float32(0.7)), X > 0) + x
      return jnp.sum(x)

    # What the backward pass is handed: all that is kept in between.
    _, pull_back = jax.eval_shape(lambda x: jax.vjp(loss, x), X)
    return sum(
      leaf.size for leaf in jax.tree.leaves(pull_back) if leaf.size == X.size
    )

  # The six inputs, and the mask once or for each.
  assert program(outline.recomputed(_bend)) <= 12 * X.size
  assert program(_bend) > program(outline.recomputed(_bend))


@pytest.mark.parametrize(
  ("layout", "calls"), [("NHWC", 3), ("NCHW", 0)], ids=str
)
def test_what_a_cpu_would_run_slowly_is_inlined(layout, calls):
  if jax.default_backend() != "cpu":
    pytest.skip("other platforms inline")
  images, kernel = jnp.ones((2, 6, 6, 6)), jnp.ones((3, 3, 6, 6))

  @outline.outlined
  def function(images):
    numbers = (layout, "HWIO", layout)
    return jax.lax.conv_general_dilated(
      images, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )

  def program(x):
    for _ in range(3):
      x = jnp.cumsum(function(x), axis=0)
    return x

  lowered = jax.jit(program).lower(images)
  assert lowered.as_text().count('inlineable = "false"') == calls
