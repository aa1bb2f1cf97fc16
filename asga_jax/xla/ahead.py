"""A step compiled before its first call, so that a run can say what it does."""

import time
from concurrent import futures
from typing import Any

import jax
from absl import logging


def start_compiling(
  step: Any, *args: Any
) -> futures.Future[jax.stages.Compiled]:
  """Trace a jitted step, and compile it while the caller goes on.

  Both are logged with how long they took.

  Args:
    step: from `jax.jit`.
    *args: arrays, or the shapes and dtypes, of every call to come; they are not
      donated.

  Returns:
    The compiled step to come. It raises TypeError for arguments of another
    kind.
  """
  logging.info(
    "compiling the step: a minute or two for a deep network on a CPU, seconds "
    "if it is in the cache"
  )
  started = time.perf_counter()
  lowered = step.lower(*args)
  traced = time.perf_counter()

  def finish() -> jax.stages.Compiled:
    compiled: jax.stages.Compiled = lowered.compile()
    logging.info(
      "traced in %.1f s, compiled in %.1f s",
      traced - started,
      time.perf_counter() - traced,
    )
    return compiled

  executor = futures.ThreadPoolExecutor(1, "compile")
  try:
    return executor.submit(finish)
  finally:
    executor.shutdown(wait=False)


def compile_step(step: Any, *args: Any) -> jax.stages.Compiled:
  """Compile a jitted step, and wait for it; see `start_compiling`."""
  return start_compiling(step, *args).result()
