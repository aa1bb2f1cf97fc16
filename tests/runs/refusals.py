"""Errors before anything is trained or evaluated, and what files are there."""

import contextlib
from unittest import mock

import pytest

from asga_jax import evaluate
from asga_jax.training import loop


@contextlib.contextmanager
def refused(named, error=ValueError):
  """Expects an error before anything is trained or evaluated."""
  with (
    mock.patch.object(loop, "run", side_effect=AssertionError),
    mock.patch.object(evaluate, "evaluate", side_effect=AssertionError),
    pytest.raises(error, match=named) as caught,
  ):
    yield caught


def names_in(directory):
  return sorted(path.name for path in directory.iterdir())
