"""What the tests of runs do without."""

import pathlib
from unittest import mock

import pytest

from asga_jax.report import plots


@pytest.fixture(autouse=True)
def no_curves():
  """Draws no curves, a third of a tiny run's time, but in fixtures of a file.

  tests/report draws them too.
  """

  def leave_blank(records, path, **settings):
    assert records
    del settings
    pathlib.Path(path).touch()

  with mock.patch.object(plots, "plot_search", leave_blank):
    yield
