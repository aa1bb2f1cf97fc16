"""A trained network quantized by the command, without training."""

import json
from unittest import mock

import made_runs
import numpy as np
import pytest
from quantizations import make_config, unlabelled

import asga_jax
from asga_jax import data as data_lib
from asga_jax.runs import (
  evaluate,
  export,
  quantize,
  quantize_summary,
  workdir,
)
from asga_jax.scores import candidates, probe

pytestmark = pytest.mark.usefixtures("tiny_model")
FILES = (
  "config.json",
  "measured.json",
  "network.onnx",
  "pareto.png",
  "policy.json",
  "policy.png",
  "report.html",
  "scores.json",
  "summary.json",
  "weights.safetensors",
)

CURVE = (1.03, 1.3, 1e-6)


@pytest.fixture
def config(make_tiny, weights):
  return make_config(make_tiny, weights)


@pytest.fixture(scope="module")
def finished(make_tiny, weights, tmp_path_factory):
  path = tmp_path_factory.mktemp("quantized") / "run"
  config = make_config(make_tiny, weights)
  config.post_training.curve = CURVE
  return path, quantize.run_quantization(config, path)


def test_a_run_leaves_what_it_says(finished):
  path, found = finished
  assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
  assert found.summary == json.loads((path / "summary.json").read_text())
  assert found.policy == asga_jax.load_policy(path / "policy.json")
  told = found.summary
  assert told["report_images"] == len(data_lib.load("digits").test_images)
  for name in (
    "float_accuracy",
    "uniform_accuracy",
    "policy_accuracy",
    "agreement",
    "uniform_agreement",
  ):
    assert 0 < told[name] <= 1, name
  assert told["float_accuracy"] > 0.5
  gain = told["policy_accuracy"] - told["uniform_accuracy"]
  assert told["gain_over_uniform"] == pytest.approx(gain)
  low, high = told["gain_interval"]
  assert low < gain < high
  assert told["divergence"] > 0 < told["uniform_divergence"]
  assert found.policy.cost["budget_used"] <= 1
  # Words that say the same.
  printed = quantize_summary.format_quantization(found)
  assert printed.splitlines()[-1] == quantize_summary.sentence(told)
  assert bool(told["warnings"]) == (low <= 0)


def test_other_budgets_are_measured_alike(finished):
  """The curve's own points are the summary's figures; dearer ones cost more."""
  path, found = finished
  told = found.summary
  measured = json.loads((path / "measured.json").read_text())
  assert measured["float_accuracy"] == told["float_accuracy"]
  assert (measured["cost"], measured["unit"]) == ("bops", "BOPs")
  rows = measured["policies"]
  own, *others = (x["cost"] for x in rows if x["kind"] == "searched")
  assert own == told["bops"]
  # No policy costs a millionth.
  small, large = (cost / own for cost in others)
  assert 1 < small <= 1.03 < large <= 1.3
  # Each has a network of its own.
  assert max(rows, key=lambda x: x["cost"])["accuracy"] > rows[0]["accuracy"]
  assert [row["accuracy"] for row in rows[:2]] == [
    told[f"{kind}_accuracy"] for kind in ("policy", "uniform")
  ]


def test_a_finished_run_is_read(finished, config, contents):
  path, found = finished
  config.post_training.curve = CURVE
  before = contents(path)
  with mock.patch.object(
    quantize.post_training, "quantize_post_training", side_effect=AssertionError
  ):
    again = quantize.run_quantization(config, path)
  assert again == found
  assert contents(path) == before
  # Killed before it had measured other budgets.
  (path / "measured.json").unlink()
  assert asga_jax.load_run(path)
  assert quantize.run_quantization(config, path) == found
  assert (path / "measured.json").exists()
  config.budget = "bops=4bit"
  with pytest.raises(workdir.WorkdirError, match="budget"):
    quantize.run_quantization(config, path)


def test_its_page_leads_with_what_was_measured(finished):
  path, found = finished
  page = made_runs.Page(path / "report.html")
  assert quantize_summary.sentence(found.summary) in page.words
  assert "Accuracy (%) at each cost; dashed: float" in page.charts
  shown = f"{100 * found.summary['policy_accuracy']:.1f} %"
  assert shown in page.words
  assert set(found.policy.layers) < set(page.table("layer"))
  assert "step" not in page.words.split()
  made_runs.check_stands_alone(page)


@pytest.mark.slow
def test_others_open_it(finished, tmp_path):
  path, found = finished
  told = found.summary
  evaluation = evaluate.evaluate_run(path, compare=["float"])
  top1 = {k: x["top1"] for k, x in evaluation["networks"].items()}
  assert top1["quantized"] == pytest.approx(told["policy_accuracy"])
  assert top1["float"] == pytest.approx(told["float_accuracy"])
  model = asga_jax.load_run(path)
  images = np.random.default_rng(0).normal(size=(4, 8, 8, 3))
  assert model(images.astype(np.float32)).shape == (4, 10)
  lines = list(
    export.export_run(
      path, formats=("packed", "onnx"), output=str(tmp_path), repeats=0
    )
  )
  assert "packed" in lines[-1]
  rows = json.loads((tmp_path / "network-report.json").read_text())["rows"]
  for row in rows:
    if row["top1"] is not None:
      assert row["top1"] == pytest.approx(told["policy_accuracy"], abs=0.01)
  with pytest.raises(ValueError, match=r"budget=bops=2bit is of a search"):
    next(export.export_run(path, budget="bops=2bit"))


@pytest.mark.slow
def test_images_without_labels(config, folder, tmp_path, caplog):
  path = tmp_path / "run"
  config.budget = "bops=2bit"
  config.end_bits = 4
  config.post_training.curve = (1.5,)
  config.post_training.crop = 0.9
  found = quantize.run_quantization(unlabelled(config, folder), path)
  assert found.policy.provenance["calibration_crop"] == 0.9
  # Its batch norm is corrected: there is nothing to warn of.
  assert "keeps the statistics" not in caplog.text
  told = found.summary
  assert "policy_accuracy" not in told
  assert "gain_interval" not in told
  assert told["split"] == "held-out images"
  # Of 100 images 64 are used.
  assert told["report_images"] == 36
  assert 0 < told["agreement"] <= 1
  assert "agreement with the float network" in quantize_summary.sentence(told)
  measured = json.loads((path / "measured.json").read_text())
  assert measured["what"] == "agreement with float"
  page = made_runs.Page(path / "report.html")
  assert "Agreement with float (%) at each cost" in page.charts
  assert quantize_summary.sentence(told) in page.words
  with pytest.raises(ValueError, match="no images with labels"):
    evaluate.evaluate_run(path)
  (line,) = export.export_run(path, formats=("packed",), report=False)
  assert "written" in line


def test_a_killed_run_goes_on_from_its_scores(config, folder, tmp_path):
  config = unlabelled(config, folder)
  whole = quantize.run_quantization(config, tmp_path / "whole")
  path = tmp_path / "run"
  measured = []
  set_float = candidates.Candidates.set_float

  def kill(self, group):
    set_float(self, group)
    measured.append(group)
    if len(measured) == 12:
      raise KeyboardInterrupt

  with (
    mock.patch.object(candidates.Candidates, "set_float", kill),
    pytest.raises(KeyboardInterrupt),
  ):
    quantize.run_quantization(config, path)
  assert sorted(file.name for file in path.iterdir()) == [
    "config.json",
    "scores.json",
  ]
  kept = json.loads((path / "scores.json").read_text())["values"]
  assert kept
  found = quantize.run_quantization(config, path)
  assert found.policy.layers == whole.policy.layers
  assert (
    kept.items()
    <= json.loads((path / "scores.json").read_text())["values"].items()
  )


def test_a_budget_by_accuracy(finished, config, tmp_path):
  config.budget = "drop=12%"
  config.post_training.scores = str(finished[0] / "scores.json")
  with mock.patch.object(
    candidates.Candidates, "set_candidate", side_effect=ValueError
  ):
    found = quantize.run_quantization(config, tmp_path / "run")
  told = found.summary
  assert told["fall"] <= 0.12
  lost = told["float_accuracy"] - told["policy_accuracy"]
  assert told["fall"] == pytest.approx(lost)
  low, high = told["fall_interval"]
  assert low < lost < high
  assert told["accuracy_budget"] == "drop=12%"
  assert (tmp_path / "run" / "scores.json").exists()
  assert asga_jax.load_run(tmp_path / "run")


@pytest.mark.slow
def test_a_budget_by_accuracy_on_other_images(finished, config, tmp_path):
  config.budget = "agree=80%"
  config.post_training.split = "train"
  config.post_training.scores = str(finished[0] / "scores.json")
  told = quantize.run_quantization(config, tmp_path / "run").summary
  assert told["fall_split"] == "train"
  count = len(data_lib.load("digits").train_images)
  assert told["fall_images"] == count - 64
  assert told["split"] == "test"


def test_an_unreachable_accuracy_keeps_the_scores(config, tmp_path):
  config.budget = "agree=99%"
  config.bits = (2,)
  config.rules = ({"pattern": ".*", "weight_bits": (2, 3)},)
  path = tmp_path / "run"
  with pytest.raises(
    ValueError, match=r"expected a budget from agree=.* scores are kept"
  ):
    quantize.run_quantization(config, path)
  assert (path / "scores.json").exists()
  assert not (path / "summary.json").exists()


def _set(**changes):
  def change(config, folder):
    unlabelled(config, folder)
    for name, value in changes.items():
      group, _, key = name.rpartition("__")
      (config[group] if group else config)[key] = value

  return change


def _too_few(config, folder):
  del folder
  config.budget = "drop=0.1%"


def _other_classes(config, folder):
  del folder
  config.deployed.num_classes = 9


def _more_classes(config, folder):
  _other_classes(config, folder)
  config.weights.skip = ("head/.*",)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (_set(weights__path=""), "config.weights.path is empty"),
    (_set(weights__path="nowhere.safetensors"), "nowhere"),
    (_set(post_training__source=""), "both empty; expected data, or --images"),
    (_set(post_training__source="nowhere"), "nowhere cannot be read as a list"),
    (_set(data__normalisation=""), "config.data.normalisation is empty"),
    (_set(budget="drop=1%"), "held-out images has no labels"),
    (_set(budget="drop=lots"), "expected drop="),
    (
      _set(budget="agree=99%"),
      "36 images of held-out images would tell",
    ),
    (_set(budget="bops=1bit"), "lowest"),
    (_set(budget="bops=4bits please"), "cannot read"),
    (_set(budget="latency=2ms"), "latency table"),
    (_set(post_training__images=0), "post_training.images is 0"),
    (_set(post_training__score="first_order"), "score is 'first_order'"),
    (_set(post_training__crop=1.5), "post_training.crop is 1.5"),
    (_set(post_training__curve=(0.7, 0)), r"post_training.curve is \(0.7, 0\)"),
    (_set(post_training__split="half"), "post_training.split is 'half'"),
    (_set(post_training__split="train"), "expected 'test'"),
    (_set(post_training__scored_batches=9), "scored=9 of 2 batches"),
    (_set(budget="agree=90%", post_training__evaluations=40), "s is 40 and co"),
    (_set(bits=(1,)), "bits"),
    (_too_few, r"images of test would tell .* expected about \d+ images"),
    (_other_classes, "the network has 9 classes, as config.deployed.num_cl"),
    (_more_classes, "has 10 classes and config.deployed.num_classes is 9"),
  ],
)
def test_bad_input_is_told_before_anything_is_measured(
  config, folder, tmp_path, change, message
):
  change(config, folder)
  with (
    mock.patch.object(probe, "Probe", side_effect=AssertionError),
    pytest.raises(ValueError, match=message),
  ):
    quantize.run_quantization(config, tmp_path / "run")
  assert not (tmp_path / "run" / "scores.json").exists()


@pytest.mark.slow
def test_other_scores(config, tmp_path):
  config.post_training.score = "output_gradient"
  found = quantize.run_quantization(config, tmp_path / "run")
  assert found.policy.provenance["score"] == "output_gradient"
  assert 0 < found.summary["agreement"] <= 1


def test_scores_of_another_network_are_refused(config, finished, tmp_path):
  config.post_training.images = 32
  config.post_training.scores = str(finished[0] / "scores.json")
  with pytest.raises(ValueError, match="of another network, of other inputs"):
    quantize.run_quantization(config, tmp_path / "run")
