"""What a command sets for its whole process; the library sets none of it."""

import gc

from asga_jax.runs import interrupts
from asga_jax.xla import compile_cache


def prepare() -> None:
  """Set the garbage collector, keep compiled programs, and take signals.

  Call it once, before anything is compiled.
  """
  interrupts.install()
  # What was imported stays. Tracing makes a million objects that stay too, and
  # hardly any garbage: looking for it takes a quarter of a start.
  gc.freeze()
  gc.set_threshold(1_000_000)
  compile_cache.enable()
