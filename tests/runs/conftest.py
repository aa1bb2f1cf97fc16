"""What the tests of runs share, and what they do without."""

import pathlib
from unittest import mock

import pytest
from tiny_runs import make_policy

from asga_jax import policy as policy_lib
from asga_jax.report import plots


@pytest.fixture
def config(tiny_config):
  return tiny_config


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory, tiny_model, make_tiny):
  """A policy of mixed bits."""
  path = tmp_path_factory.mktemp("policy") / "policy.json"
  policy_lib.save(make_policy(make_tiny()), path)
  return path


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
