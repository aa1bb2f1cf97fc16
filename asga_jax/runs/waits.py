"""The long waits of a run, told before and after."""

import contextlib
import time
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
  """Log what is compiled and run, and afterwards how long that took.

  Args:
    what: such as 'evaluating the policy on 2000 images'.
  """
  logging.info("%s: compiled first, which may take a minute", what)
  started = time.perf_counter()
  yield
  logging.info("%s took %.1f s", what, time.perf_counter() - started)
