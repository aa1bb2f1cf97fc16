"""Flags of commands that many processes run together, and how they end."""

import contextlib
from collections.abc import Iterator

from absl import flags, logging

from asga_jax.runs import meeting, processes
from asga_jax.training import loop

_MULTIHOST = flags.DEFINE_bool(
  "multihost",
  False,
  "Run as one of several processes, which find each other under SLURM, "
  "Kubernetes and on Cloud TPU; elsewhere by the next three flags.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "With --multihost: HOST:PORT at which process 0 listens."
)
_PROCESSES = flags.DEFINE_integer(
  "processes", None, "With --multihost: how many processes there are."
)
_PROCESS = flags.DEFINE_integer(
  "process", None, "With --multihost: which of them this is, from 0."
)


def join() -> None:
  """Meet the other processes, if there are to be any.

  Raises:
    SystemExit: that cannot be; the sentence is logged.
  """
  where = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  with errors_told():
    if _MULTIHOST.value:
      meeting.join(*where)
    elif where != (None, None, None):
      raise meeting.MeetingError(
        "--coordinator, --processes and --process are of --multihost; expected "
        "that flag too"
      )


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
  """Tell what users can mend in a line, and end with 1.

  One of several processes ends so after any error, and does not wait for the
  others.
  """
  try:
    yield
  except (ValueError, OSError, loop.DivergedError) as error:
    if processes.lost_another(error):
      processes.leave(error)
    logging.error("%s: %s", type(error).__name__, error)
    processes.leave()
  except Exception as error:
    if not processes.several():
      raise
    processes.leave(error)
