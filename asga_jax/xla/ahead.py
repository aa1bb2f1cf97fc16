"""A step compiled before its first call, so that a run can say what it does."""

import gc
import time
from concurrent import futures
from typing import Any

import jax
from absl import logging


def start_compiling(
  step: Any, *args: Any
) -> futures.Future[jax.stages.Compiled]:
  """Trace a jitted step, and compile it while the caller goes on.

  Both are logged with how long they took. In a process that has frozen objects
  for the garbage collector, as the commands do, all that there are after
  tracing are frozen too: millions that stay.

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
  # Tracing makes millions of objects and hardly any garbage: looking for it
  # takes a third of the time.
  collecting = gc.isenabled()
  gc.disable()
  try:
    lowered = step.lower(*args)
  finally:
    if gc.get_freeze_count():
      gc.freeze()
    if collecting:
      gc.enable()
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
