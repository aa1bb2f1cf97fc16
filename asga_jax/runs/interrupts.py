"""SIGTERM and Ctrl-C: a run saves the step that it is at, and ends.

Python runs handlers in the main thread, which a compiler may hold for minutes.
So a thread of its own reads which signals came, from a pipe that the
interpreter writes to at once. Outside of steps there is nothing to save that is
not on file, and the process ends there and then.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from absl import logging

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
  """A signal has ended the run, its last step saved; exits with 128 + it."""


class _Watch:
  """What came, and whether steps are run."""

  def __init__(self) -> None:
    self.lock = threading.Lock()
    self.in_steps = False
    self.came: int | None = None

  def take(self, number: int) -> None:
    """Note a signal, or end the process."""
    name = signal.Signals(number).name
    with self.lock:
      waits = self.in_steps and self.came is None
      if waits:
        self.came = number
    if waits:
      say = f"{name}: saving this step, then the run ends; a second one ends it"
      # In a thread of its own: a stream that nobody reads may hold it for ever.
      threading.Thread(
        target=logging.warning, args=(f"{say} at once",), daemon=True
      ).start()
      return
    last = threading.Thread(target=_say_last, args=(name,), daemon=True)
    last.start()
    last.join(timeout=1)
    # Not sys.exit, which would wait for the main thread.
    os._exit(128 + number)


def _say_last(name: str) -> None:
  logging.warning(
    "%s: the run ends; the same command goes on from what is saved", name
  )
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()


_watch: _Watch | None = None


def install() -> None:
  """Take SIGTERM and SIGINT from here on, for the whole process.

  For commands, from the main thread; the library never does. A second call
  does nothing.
  """
  global _watch
  if _watch is not None:
    return
  watch = _Watch()
  received, sent = socket.socketpair()
  sent.setblocking(False)
  signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
  for number in SIGNALS:
    signal.signal(number, lambda *_: None)

  def follow() -> None:
    # The other end is held here, or it would be closed.
    while sent.fileno() >= 0:
      for number in received.recv(64):
        if number in SIGNALS:
          watch.take(number)

  threading.Thread(target=follow, name="signals", daemon=True).start()
  os.register_at_fork(after_in_child=_forget)
  _watch = watch


def _forget() -> None:
  """Give signals back their defaults, in a child: they are not its parent's."""
  global _watch
  if _watch is None:
    return
  _watch = None
  signal.set_wakeup_fd(-1)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def steps(
  agree: Callable[[int], int] = lambda number: number,
) -> Iterator[Callable[[], bool]]:
  """Hold signals back while steps are run that can be saved.

  Args:
    agree: of the number of the signal that came, or 0, to that which came to
      any process of the run; it is called with every question and at the end.

  Yields:
    A function that tells, after a step, whether a signal came: then save, and
    leave.

  Raises:
    Stopped: at the end, if one came.
  """
  # Without `install` none comes to this process.
  watch = _watch or _Watch()
  with watch.lock:
    watch.in_steps = True
  try:
    yield lambda: agree(watch.came or 0) > 0
  finally:
    with watch.lock:
      watch.in_steps = False
  came = agree(watch.came or 0)
  if came:
    raise Stopped(128 + came)
