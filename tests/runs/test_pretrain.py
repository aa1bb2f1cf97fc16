"""The float training before a search: killed, refused, left out."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest

from asga_jax.runs import checkpoints, read
from asga_jax.runs import config as config_lib
from asga_jax.runs import metrics as metrics_log
from asga_jax.runs import search as search_run

pytestmark = pytest.mark.usefixtures("tiny_model")


class KilledError(BaseException):
  """Stands for the end of the process: nothing catches it."""


@pytest.fixture
def config(tiny_config):
  tiny_config.pretrain.steps = 6
  return tiny_config


@pytest.mark.slow
def test_killed_while_the_float_network_is_trained_it_goes_on(config, tmp_path):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  search_run.run_search(config, whole)
  write = metrics_log.MetricsWriter.write

  def killed_in_step_six(self, records):
    write(self, records)
    if list(records)[-1]["step"] == 6:
      raise KilledError

  with (
    mock.patch.object(metrics_log.MetricsWriter, "write", killed_in_step_six),
    pytest.raises(KilledError),
  ):
    search_run.run_search(config, cut)
  assert checkpoints.latest_step(cut / "float" / "checkpoints") == 4
  assert not (cut / "checkpoints").exists()
  search_run.run_search(config, cut)
  for name in ("policy.json", "summary.json", "float/summary.json"):
    assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
  # Once the search has begun its weights are in its own checkpoints.
  (cut / "summary.json").unlink()
  shutil.rmtree(cut / "float")
  finished = search_run.run_search(config, cut)
  assert finished.summary["float_accuracy"] is None
  assert finished.policy == read.read_finished_search(whole).policy


def test_what_a_search_refuses_is_told_before_the_training(config, tmp_path):
  run = tmp_path / "run"
  config.budget = "bops=10"
  with pytest.raises(ValueError, match="lowest reachable"):
    search_run.run_search(config, run)
  config.budget = "bops=4bit"
  config.pretrain.learning_rate = -0.1
  with pytest.raises(ValueError, match=r"pretrain\.learning_rate is -0\.1"):
    search_run.run_search(config, run)
  config.pretrain.update(learning_rate=0.05, steps=-1)
  with pytest.raises(ValueError, match=r"pretrain\.steps is -1; expected at"):
    search_run.run_search(config, run)
  assert not run.exists()


@pytest.mark.slow
def test_an_untrained_network_is_told_in_a_sentence(config, tmp_path, caplog):
  config.pretrain.steps = 0
  config.search.steps = 1
  finished = search_run.run_search(config, tmp_path / "run")
  (said,) = (x for x in caplog.messages if "untrained network" in x)
  assert "config.pretrain.steps is 0" in said
  assert finished.summary["float_accuracy"] is None
  assert not (tmp_path / "run" / "float").exists()
  assert "random weights" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_frozen_batch_norm_stays_and_the_rest_is_learned(config, tmp_path):
  config.search.freeze_batch_norm = True
  config.search.steps = 3
  search_run.run_search(config, tmp_path / "run")
  found = read.read_search(tmp_path / "run").model
  trained = read.read_trained(tmp_path / "run" / "float").model
  np.testing.assert_array_equal(found.norm.mean[...], trained.norm.mean[...])
  np.testing.assert_array_equal(found.norm.var[...], trained.norm.var[...])
  moved = found.middle.kernel[...] - trained.middle.kernel[...]
  assert np.abs(moved).max() > 1e-4
  assert np.abs(found.norm.scale[...] - trained.norm.scale[...]).max() > 0


@pytest.mark.slow
def test_a_directory_of_before_opens_and_reads_as_it_was(config, tmp_path):
  config.pretrain.steps = 0
  config.search.steps = 2
  search_run.run_search(config, tmp_path)
  file = tmp_path / "config.json"
  kept = json.loads(file.read_text())
  del kept["pretrain"], kept["search"]["freeze_batch_norm"]
  file.write_text(json.dumps(kept))
  assert read.read_search(tmp_path).provenance["steps"] == 2
  search_run.run_search(config, tmp_path)
  config.pretrain.steps = config_lib.default_config().pretrain.steps
  with pytest.raises(ValueError, match=r"pretrain\.steps: 0 there"):
    search_run.run_search(config, tmp_path)
