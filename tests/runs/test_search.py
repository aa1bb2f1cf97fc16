"""The search from the command line: resumed, finished, exported, refused."""

import importlib.util
import json
import re
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax import search as search_lib
from asga_jax.cost import budget as budget_lib
from asga_jax.report import warnings as run_warnings
from asga_jax.runs import (
  build,
  checkpoints,
  config_rules,
  read,
  summary,
  workdir,
)
from asga_jax.runs import config as config_lib
from asga_jax.runs import metrics as metrics_log
from asga_jax.runs import search as search_run
from asga_jax.runs import tensorboard as tensorboard_log

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, make_tiny):
  """The work directory of a run that was not interrupted."""
  directory = tmp_path_factory.mktemp("whole")
  search_run.run_search(make_tiny(), directory)
  return directory


class KilledError(BaseException):
  """Stands for the end of the process: nothing catches it."""


def test_an_interrupted_run_ends_with_the_same_policy_byte_for_byte(
  config, whole, tmp_path
):
  cut = tmp_path / "cut"
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
  assert not (cut / "policy.json").exists()
  assert checkpoints.latest_step(cut / "checkpoints") == 4
  resumed = search_run.run_search(config, cut)
  for name in ("policy.json", "metrics.jsonl", "summary.json"):
    assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
  assert resumed == search_run.run_search(config, whole)
  steps = [r["step"] for r in metrics_log.read_metrics(cut / "metrics.jsonl")]
  assert steps == [1, 2, 3, 4, 5, 6]
  names = {path.name for path in cut.iterdir()}
  assert names >= {"config.json", "checkpoints", "policy.png", "search.png"}
  assert (whole / "search.png").stat().st_size > 10_000
  # The report names the directory; nothing else in it may differ.
  page = (cut / "report.html").read_text().replace(str(cut), str(whole))
  assert page == (whole / "report.html").read_text()
  for path in json.loads((cut / "policy.json").read_text())["layers"]:
    assert path in page
  policy = json.loads((cut / "policy.json").read_text())
  assert policy["cost"]["budget_used"] <= 1
  assert policy["provenance"]["proxy"] == "digits"


def test_a_finished_run_prints_its_result_again(config, whole, contents):
  before = contents(whole)
  with mock.patch.object(
    search_run, "build_search", side_effect=AssertionError
  ):
    finished = search_run.run_search(config, whole)
  assert contents(whole) == before
  text = summary.format_search(finished)
  assert "middle" in text
  assert "policy accuracy" in text


def test_a_finished_run_does_not_need_its_report(config, whole, tmp_path):
  bare = tmp_path / "bare"
  shutil.copytree(whole, bare)
  (bare / "report.html").unlink()
  assert search_run.run_search(config, bare) == search_run.run_search(
    config, whole
  )


def test_warnings_are_logged_kept_and_printed(config, tmp_path, caplog):
  with (
    mock.patch.object(run_warnings, "HIGH_DISCRETISATION_GAP", -1.0),
    caplog.at_level("INFO", logger="absl"),
  ):
    finished = search_run.run_search(config, tmp_path)
    page = (tmp_path / "report.html").read_text()
  kept = json.loads((tmp_path / "summary.json").read_text())["warnings"]
  assert kept == finished.summary["warnings"]
  (said,) = (text for text in kept if "below the mixture" in text)
  assert said in caplog.text
  assert said in page
  assert f"warning: {said}" in summary.format_search(finished)
  # What takes long is told before it begins.
  told = [line for line in caplog.messages if "evaluating" in line]
  for name in ("the mixture of all bits", "the policy", "uniform bits within"):
    before, after = (line for line in told if name in line)
    # All policies share what was compiled for the mixture.
    assert ("which may take a minute" in before) == ("mixture" in name)
    assert re.search(r"took \d+\.\d s$", after)


@pytest.mark.slow
def test_events_for_tensorboard_hold_each_step_once(config, whole, tmp_path):
  steps = []
  read = metrics_log.read_metrics
  make = tensorboard_log.TensorBoardWriter

  class Recorded(make):
    def write(self, records):
      steps.extend((int(r["step"]), float(r["loss"])) for r in records)
      super().write(records)

  cut = tmp_path / "cut"
  write = metrics_log.MetricsWriter.write

  def killed_in_step_six(self, records):
    write(self, records)
    if list(records)[-1]["step"] == 6:
      raise KilledError

  with (
    mock.patch.object(metrics_log.MetricsWriter, "write", killed_in_step_six),
    pytest.raises(KilledError),
  ):
    search_run.run_search(config, cut, tensorboard=True)
  with mock.patch.object(tensorboard_log, "TensorBoardWriter", Recorded):
    search_run.run_search(config, cut, tensorboard=True)
    records = read(whole / "metrics.jsonl")
    expected = [(r["step"], r["loss"]) for r in records]
    np.testing.assert_allclose(steps, expected, rtol=1e-6)
    # Asked for after the end, they are made of the metrics file.
    steps.clear()
    shutil.rmtree(cut / "tensorboard")
    search_run.run_search(config, cut, tensorboard=True)
    np.testing.assert_allclose(steps, expected, rtol=1e-6)
  assert len(list((cut / "tensorboard").iterdir())) == 1


def test_a_missing_tensorboard_library_is_an_error_before_the_search(
  config, tmp_path
):
  with (
    mock.patch.object(importlib.util, "find_spec", return_value=None),
    pytest.raises(ValueError, match="pip install tensorboardX"),
  ):
    search_run.run_search(config, tmp_path / "run", tensorboard=True)
  assert not (tmp_path / "run").exists()


def test_restoring_falls_back_from_a_damaged_newest_checkpoint(whole, tmp_path):
  cut = tmp_path / "damaged"
  shutil.copytree(whole, cut)
  for file in (cut / "checkpoints" / "6" / "index").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  found = read.read_search(cut)
  assert found.provenance["steps"] == 4


def test_restoring_gives_the_same_policy_and_other_budgets(
  config, whole, tmp_path
):
  found = read.read_search(whole)
  asga_jax.save_policy(asga_jax.allocate(found), tmp_path / "policy.json")
  assert (tmp_path / "policy.json").read_bytes() == (
    whole / "policy.json"
  ).read_bytes()
  for budget in ("bops=3bit", "size=4bit", "bops=9%"):
    policy = asga_jax.allocate(found, budget=budget)
    assert policy.budget == budget
    assert policy.cost["budget_used"] <= 1
  with pytest.raises(budget_lib.InfeasibleBudgetError, match="lowest"):
    asga_jax.allocate(found, budget="bops=10")


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
  config, whole, tmp_path, caplog
):
  damaged = tmp_path / "damaged"
  shutil.copytree(whole, damaged)
  for name in ("policy.json", "summary.json"):
    (damaged / name).unlink()
  for path in (damaged / "checkpoints" / "6").rglob("*"):
    if path.is_file() and path.stat().st_size > 0:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with caplog.at_level("INFO", logger="absl"):
    search_run.run_search(config, damaged)
  assert "checkpoint of step 6 is damaged" in caplog.text
  assert "from the checkpoint of step 4" in caplog.text
  for name in ("policy.json", "metrics.jsonl"):
    original = (whole / name).read_bytes()
    assert (damaged / name).read_bytes() == original


@pytest.mark.slow
def test_a_search_from_trained_weights_goes_on_without_their_file(
  config, tiny_network_class, tmp_path
):
  file = tmp_path / "weights.safetensors"
  network = tiny_network_class(10, 3, rngs=nnx.Rngs(5))
  asga_jax.save_weights(network, file)
  config.weights.path = str(file)
  config.search.steps = 3
  directory = tmp_path / "run"
  search_run.run_search(config, directory)
  policy = (directory / "policy.json").read_bytes()
  recorded = json.loads((directory / "config.json").read_text())
  assert recorded["weights"]["path"] == str(file)
  file.unlink()
  for name in ("policy.json", "summary.json"):
    (directory / name).unlink()
  shutil.rmtree(directory / "checkpoints" / "3")
  search_run.run_search(config, directory)
  assert (directory / "policy.json").read_bytes() == policy
  found = asga_jax.allocate(read.read_search(directory))
  assert found.layers == asga_jax.load_policy(directory / "policy.json").layers
  with pytest.raises(ValueError, match=r"weights\.safetensors do not exist"):
    search_run.run_search(config, tmp_path / "another")
  assert not (tmp_path / "another").exists()


def test_the_directory_of_another_run_is_left_alone(config, whole, contents):
  before = contents(whole)
  config.search.seed = 7
  with pytest.raises(ValueError, match=r"search\.seed: 0 there, 7 now"):
    search_run.run_search(config, whole)
  assert contents(whole) == before


def test_a_directory_without_a_search_cannot_be_restored(config, tmp_path):
  with pytest.raises(ValueError, match=r"config\.json cannot be read"):
    read.read_search(tmp_path)
  (tmp_path / "config.json").write_text(config.to_json())
  with pytest.raises(ValueError, match="holds no checkpoint"):
    read.read_search(tmp_path)


@pytest.mark.slow
def test_a_bilevel_search_runs_and_tells_of_small_parts(config, tmp_path):
  config.search.update(mode="bilevel", steps=2)
  finished = search_run.run_search(config, tmp_path / "run")
  assert finished.policy.provenance["mode"] == "bilevel"
  records = metrics_log.read_metrics(tmp_path / "run" / "metrics.jsonl")
  assert [record["step"] for record in records] == [1, 2]
  config.data.heldout_fraction = 0.01
  with pytest.raises(ValueError, match=r"batch_size is 16; expected 1 to \d+,"):
    search_run.run_search(config, tmp_path / "small")
  config.data.heldout_fraction = 1.0
  with pytest.raises(ValueError, match=r"heldout_fraction is 1\.0; .*below 1"):
    search_run.run_search(config, tmp_path / "all")
  assert not (tmp_path / "small").exists()


def test_rules_of_a_configuration_become_rules():
  config = ml_collections.ConfigDict(
    {"rules": ({"pattern": "a|b", "weight_bits": [2, 4], "tie": "weights"},)}
  )
  assert config_rules.make_rules(config) == (
    asga_jax.Rule("a|b", weight_bits=(2, 4), tie="weights"),
  )


def test_prepared_images_are_normalised_and_augmented_only_in_training(
  config,
):
  dataset = search_run.data_lib.load("digits")
  raw = {
    "image": dataset.train_images[:4],
    "label": dataset.train_labels[:4],
  }
  key = jax.random.key(0)
  plain = build.make_prepare(config, dataset, train=False)(key, raw)
  expected = (raw["image"] / 255.0 - dataset.mean[0]) / dataset.std[0]
  np.testing.assert_allclose(
    plain["image"], np.repeat(expected, 3, axis=3), atol=1e-5
  )
  trained = build.make_prepare(config, dataset, train=True)(key, raw)
  assert trained["image"].shape == (4, 8, 8, 3)
  assert not jnp.allclose(trained["image"], plain["image"])
  np.testing.assert_array_equal(trained["label"], raw["label"])


def test_a_checkpoint_from_before_the_parts_were_kept_apart_is_read(
  whole, tmp_path
):
  directory = tmp_path / "old"
  shutil.copytree(whole, directory)
  config = ml_collections.ConfigDict(workdir.read_config(directory))
  folder = directory / "checkpoints"
  metadata = checkpoints.latest_metadata(folder)
  model = build.make_searchable(
    config, metadata["num_classes"], None, trained=False
  )
  made = search_lib.start_search(
    model, budget=config.budget, settings=config_lib.search_settings(config)
  )
  step, state = checkpoints.restore_latest(folder, made.state)
  shutil.rmtree(folder)
  with checkpoints.Checkpoints(folder) as kept:
    kept.save(step, state._replace(task=()), metadata=metadata)
  found = read.read_search(directory)
  for group, values in found.scores["log_prob"].items():
    logits = found.space.by_group(
      made.parts.layout.unstack(state.params.logits)
    )[group]
    last = config.search.temperature[1]
    np.testing.assert_allclose(
      values, jax.nn.log_softmax(np.asarray(logits) / last), atol=1e-5
    )
