"""Steps compiled before their first call, and beside other work."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax.xla import ahead


def test_shapes_alone_compile_what_arrays_are_given_to():
  step = jax.jit(lambda x, y: (x + y, x * y), donate_argnums=0)
  x, y = jnp.arange(4.0), jnp.ones(4)
  expected = (np.asarray(x + y), np.asarray(x * y))
  shapes = (jax.ShapeDtypeStruct(z.shape, z.dtype) for z in (x, y))
  compiled = ahead.start_compiling(step, *shapes).result()
  found = compiled(x, y)
  np.testing.assert_array_equal(found, expected)
  with pytest.raises(TypeError):
    compiled(jnp.arange(5.0), jnp.ones(5))


class _Step:
  """A step whose compilation waits, or fails."""

  def __init__(self, error=None):
    self.go_on = threading.Event()
    self.error = error

  def lower(self, *args):
    return self

  def compile(self):
    assert self.go_on.wait(60)
    if self.error:
      raise self.error
    return "compiled"


def test_the_caller_goes_on_while_the_step_is_compiled():
  step = _Step()
  coming = ahead.start_compiling(step)
  assert not coming.done()
  step.go_on.set()
  assert coming.result(60) == "compiled"


def test_an_error_of_the_compiler_reaches_who_waits():
  step = _Step(RuntimeError("no memory"))
  step.go_on.set()
  with pytest.raises(RuntimeError, match="no memory"):
    ahead.compile_step(step)
