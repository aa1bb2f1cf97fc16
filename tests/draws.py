"""Random draws, which tests make in hundreds of shapes, compile fast.

A program of few optimizations draws the same bits, and compiles in a third of
the time. One of many numbers begins with the bits of one of few, so that all
shapes of about a size are cut from one program's.
"""

import math
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import compiler, core
from jax._src.random import core as random_core

DRAWS = ("_bernoulli", "_normal", "_truncated_normal")  # outside of a jit
FEWEST, MOST = 2**10, 2**18  # numbers of such a program
compiled: list[str] = []  # the names, in order


def compile_fast() -> None:
  """Compile DRAWS with few optimizations, and of few shapes."""
  compile_and_load = compiler.backend_compile_and_load

  def compile_draws(backend, module, devices, options, *rest):
    name = module.operation.attributes["sym_name"].value
    if name.removeprefix("jit_") in DRAWS:
      debug_options = options.executable_build_options.debug_options
      debug_options.xla_backend_optimization_level = 1
      compiled.append(name)
    return compile_and_load(backend, module, devices, options, *rest)

  mock.patch.object(compiler, "backend_compile_and_load", compile_draws).start()
  for name in DRAWS:
    draw = _of_few_shapes(getattr(random_core, name))
    mock.patch.object(random_core, name, draw).start()


def _of_few_shapes(draw):
  """Draw a power of four numbers, and take as many as are asked for."""

  def first(key: jax.Array, *given: Any, shape: Any = None, **settings: Any):
    if (
      shape is None
      or math.prod(shape) > MOST
      or key.shape
      or any(np.shape(each) for each in given)
      or not core.trace_state_clean()
    ):
      return draw(key, *given, shape=shape, **settings)
    size, drawn = math.prod(shape), FEWEST
    while drawn < size:
      drawn *= 4
    numbers = np.asarray(draw(key, *given, shape=(drawn,), **settings))
    return jnp.array(numbers[:size].reshape(shape))

  return first


def from_numpy(key, shape, dtype=jnp.float32):
  """Initialize a kernel by draws from numpy, which compile nothing."""
  del key
  rng = np.random.default_rng(shape)
  return jnp.asarray(
    rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), dtype
  )
