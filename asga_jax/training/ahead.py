"""A step compiled before its first call, so that a run can say what it does."""

import gc
import time
from typing import Any

import jax
from absl import logging


def compile_step(step: Any, *args: Any) -> jax.stages.Compiled:
  """Compile a jitted step for arguments like these, and log how long it took.

  Args:
    step: from `jax.jit`.
    *args: arrays of the shapes, dtypes and shardings of every call to come;
      they are not donated.

  Returns:
    The compiled step. It raises TypeError for arguments of another kind.
  """
  logging.info(
    "compiling the step: a minute or two for a deep network on a CPU, seconds "
    "if it is in the cache"
  )
  started = time.perf_counter()
  # Tracing makes millions of objects and hardly any garbage: looking for it
  # takes a third of the time.
  collecting = gc.isenabled()
  gc.disable()
  try:
    lowered = step.lower(*args)
    traced = time.perf_counter()
    compiled: jax.stages.Compiled = lowered.compile()
  finally:
    if collecting:
      gc.enable()
  logging.info(
    "traced in %.1f s, compiled in %.1f s",
    traced - started,
    time.perf_counter() - traced,
  )
  return compiled
