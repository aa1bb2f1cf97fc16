"""Random draws, which tests make in hundreds of shapes, compile fast.

A program of few optimizations draws the same bits, and compiles in a third of
the time.
"""

from unittest import mock

import jax.numpy as jnp
import numpy as np
from jax._src import compiler

DRAWS = ("jit__bernoulli", "jit__normal", "jit__truncated_normal")
compiled: list[str] = []  # the names, in order


def compile_fast() -> None:
  """Compile DRAWS, those called outside of a jit, with few optimizations."""
  compile_and_load = compiler.backend_compile_and_load

  def compile_draws(backend, module, devices, options, *rest):
    name = module.operation.attributes["sym_name"].value
    if name in DRAWS:
      debug_options = options.executable_build_options.debug_options
      debug_options.xla_backend_optimization_level = 1
      compiled.append(name)
    return compile_and_load(backend, module, devices, options, *rest)

  mock.patch.object(compiler, "backend_compile_and_load", compile_draws).start()


def from_numpy(key, shape, dtype=jnp.float32):
  """Initialize a kernel by draws from numpy, which compile nothing."""
  del key
  rng = np.random.default_rng(shape)
  return jnp.asarray(
    rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), dtype
  )
