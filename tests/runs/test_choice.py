"""A search whose policy is chosen by what is measured once it has ended."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest

import asga_jax
from asga_jax import policy as policy_lib
from asga_jax.runs import config as config_lib
from asga_jax.runs import config_checks, export, read
from asga_jax.runs import search as search_run
from asga_jax.scores import cache

pytestmark = [pytest.mark.usefixtures("tiny_model"), pytest.mark.slow]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, tiny_model, make_tiny):
  """A search with measured scores, improved upon: directory and result."""
  config = make_tiny()
  config.bits = (2, 3, 4)
  config.budget = "bops=3bit"
  config.choice.update(score="kl", images=32, evaluations=30)
  directory = tmp_path_factory.mktemp("chosen")
  return config, directory, search_run.run_search(config, directory)


def test_the_policy_is_the_best_of_those_measured(chosen):
  _, directory, finished = chosen
  told = finished.policy.provenance
  assert told["score"] == "kl"
  assert told["method"] == "asga"
  assert told["divergence"] <= told["divergence_before"]
  assert 1 <= told["evaluations"] <= 30
  assert policy_lib.load(directory / "policy.json") == finished.policy


def test_scores_are_read_again_without_data(chosen):
  _, directory, _ = chosen
  found = read.read_search(directory)
  assert found.score == "kl"
  kept = json.loads((directory / "scores.json").read_text())["values"]
  for group, values in kept.items():
    # The isotonic fit keeps the sum.
    np.testing.assert_allclose(
      -found.scores["kl"][group].sum(), np.sum(values), rtol=1e-6
    )
  other = asga_jax.allocate(found, budget="bops=4bit")
  assert other.provenance["score"] == "kl"


def test_the_export_is_of_the_policy_that_was_chosen(chosen, tmp_path):
  _, directory, finished = chosen
  output = tmp_path / "policy.json"
  list(export.export_run(directory, output=str(output)))
  assert policy_lib.load(output) == finished.policy


def test_a_search_that_is_ended_again_takes_the_scores_it_has(chosen, tmp_path):
  config, directory, finished = chosen
  again = tmp_path / "again"
  shutil.copytree(directory, again)
  (again / "summary.json").unlink()
  before = (again / "scores.json").stat().st_mtime_ns
  assert search_run.run_search(config, again).policy == finished.policy
  assert (again / "scores.json").stat().st_mtime_ns == before


def test_fitted_scores_are_kept_policy_by_policy(
  tmp_path, make_tiny, tiny_model
):
  config = make_tiny()
  config.bits = (2, 3, 4)
  config.budget = "bops=3bit"
  config.search.sampled = True
  config.choice.update(score="fitted", images=32, policies=24)
  directory = tmp_path / "run"
  put = cache.Cache.put

  def killed(self, name, values):
    put(self, name, values)
    if name == "9":
      raise KeyboardInterrupt

  with (
    mock.patch.object(cache.Cache, "put", killed),
    pytest.raises(KeyboardInterrupt),
  ):
    search_run.run_search(config, directory)
  kept = json.loads((directory / "scores.json").read_text())["values"]
  assert len(kept) == 10
  finished = search_run.run_search(config, directory)
  told = finished.policy.provenance
  assert told["score"] == "fitted"
  assert told["fitted_policies"] == 24
  after = json.loads((directory / "scores.json").read_text())["values"]
  assert {name: after[name] for name in kept} == kept
  assert len(after) == 25
  again = read.read_search(directory)
  assert asga_jax.allocate(again) == finished.policy


def test_fitted_scores_take_no_evaluations(tiny_config):
  tiny_config.choice.update(score="fitted", evaluations=5)
  with pytest.raises(config_checks.ConfigError, match="expected 0, or another"):
    config_lib.check_search_config(config_lib.of_search(tiny_config))


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("score", "log_prob", "expected one of .* the first for config.search"),
    ("policies", 19, "config.choice.policies is 19; expected at least 20"),
    ("images", 0, "config.choice.images is 0; expected at least 1"),
    ("evaluations", -1, "config.choice.evaluations is -1; expected at least 0"),
  ],
)
def test_bad_values_are_told(tiny_config, key, value, message):
  tiny_config.choice[key] = value
  with pytest.raises(config_checks.ConfigError, match=message):
    config_lib.check_search_config(config_lib.of_search(tiny_config))
