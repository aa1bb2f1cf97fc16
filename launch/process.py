"""What a command sets for its whole process; the library sets none of it."""

import gc
import sys

from asga_jax.xla import compile_cache


def prepare() -> None:
  """Set the garbage collector and the threads, and keep compiled programs.

  Call it once, before anything is compiled.
  """
  # What was imported stays. Tracing makes a million objects that stay too, and
  # hardly any garbage: looking for it takes a quarter of a start.
  gc.freeze()
  gc.set_threshold(1_000_000)
  # Orbax starts several threads a save and waits for each to begin, behind the
  # turns of all the others: more than half of the time that a save blocks.
  sys.setswitchinterval(5e-4)
  compile_cache.enable()
