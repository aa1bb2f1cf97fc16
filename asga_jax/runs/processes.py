"""Several processes of one run: what they agree on, and how they end.

Each holds its share of a batch and computes the same as the others; the first
alone writes. Between them is JAX's distributed runtime, nothing else.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

# Seconds until a process that is silent is taken for dead.
SILENT = 30
# How errors of a process that is lost begin, or what they speak of.
_OF_LOSS = ("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE")
_OF_LINKS = (
  "Connection",
  "Gloo",
  "NCCL",
  "barrier",
  "gloo",
  "heartbeat",
  "peer",
)
# Seconds that the first stays after an error: the others end with it.
_GRACE = 3


def say(sentence: str) -> None:
  """Log an error, and see that it is told before the process ends."""
  logging.error("%s", sentence)
  sys.stderr.flush()
  sys.stdout.flush()


def line(error: BaseException) -> str:
  """Give the first line of what an error says."""
  return next(iter(str(error).splitlines()), type(error).__name__)


def several() -> bool:
  """Tell whether this process is one of several that have met."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
  """Tell whether this is the process that writes."""
  return jax.process_index() == 0


def leave(error: BaseException | None = None) -> NoReturn:
  """End with 1 after an error; of several processes, without the others.

  They learn of it as of a kill: at their next collective, or once this one has
  been silent for `SILENT` seconds.

  Args:
    error: that is still to be told.
  """
  if not several():
    sys.exit(1)
  lost = error is not None and lost_another(error)
  if error is not None:
    me = f"process {jax.process_index()} of {jax.process_count()}"
    if lost:
      say(
        f"{me} ends, since another has ended or cannot be reached; start all of"
        f" them again to go on from the last checkpoint ({line(error)})"
      )
    else:
      traceback.print_exception(error)
      say(f"{me} ends: {type(error).__name__}: {line(error)}")
  # Where one is lost the others see it, and JAX may abort who stays.
  if first() and not lost:
    time.sleep(_GRACE)
  sys.stderr.flush()
  sys.stdout.flush()
  os._exit(1)


def lost_another(error: BaseException) -> bool:
  """Tell whether an error is that of a process which cannot be reached.

  JAX raises such errors as ValueError too, where arrays are fetched.
  """
  text = str(error)
  return several() and (
    any(word in text for word in _OF_LINKS)
    or (
      isinstance(error, jax.errors.JaxRuntimeError)
      and text.startswith(_OF_LOSS)
    )
  )


def agree(number: int) -> int:
  """Give the largest number that any process has; all must call it."""
  if not several():
    return number
  found = multihost_utils.process_allgather(np.int32(number))
  return int(np.max(found))


def wait(what: str) -> None:
  """Wait until all processes are here."""
  if several():
    multihost_utils.sync_global_devices(what)


def from_first(make: Callable[[], str]) -> str:
  """Make a text in the first process, and hand it to all."""
  if not several():
    return make()
  made = make() if first() else ""
  return gathered(made.encode())[0].decode()


def gathered(text: bytes) -> list[bytes]:
  """Give the bytes that each process has, to every one."""
  sizes = multihost_utils.process_allgather(np.int32(len(text)))
  padded = np.frombuffer(text.ljust(max(sizes), b"\0"), np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [row.tobytes()[:size] for row, size in zip(rows, sizes, strict=True)]
