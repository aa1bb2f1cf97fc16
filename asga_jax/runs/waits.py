"""The long waits of a run, told before and after."""

import contextlib
import time
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def told(what: str, *, first: bool = True) -> Iterator[None]:
  """Log what is compiled and run, and afterwards how long that took.

  Args:
    what: such as 'evaluating the policy on 2000 images'.
    first: whether something is compiled for it.
  """
  compiled = ": compiled first, which may take a minute" if first else ""
  logging.info("%s%s", what, compiled)
  started = time.perf_counter()
  yield
  logging.info("%s took %.1f s", what, time.perf_counter() - started)
