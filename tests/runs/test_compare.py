"""A search measures its policy, uniform bits and float in the same way."""

import json

import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.report import verdict
from asga_jax.runs import compare, pretrain, read, summary
from asga_jax.runs import search as search_run

pytestmark = pytest.mark.usefixtures("tiny_model")


def test_the_interval_is_that_of_paired_differences():
  rng = np.random.default_rng(0)
  theirs = rng.random(4000) < 0.6
  ours = np.where(rng.random(4000) < 0.1, ~theirs, theirs)
  gain, (low, high) = compare.paired_gain(ours, theirs)
  assert gain == pytest.approx(ours.mean() - theirs.mean())
  again = [
    (ours[i].astype(float) - theirs[i]).mean()
    for i in rng.integers(0, 4000, (2000, 4000))
  ]
  np.testing.assert_allclose(
    [low, high], np.percentile(again, [2.5, 97.5]), atol=1.5e-3
  )
  assert compare.paired_gain(ours, ours) == (0, [0, 0])


def test_networks_are_told_apart_image_by_image():
  ours, theirs = np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 1], bool)
  gain, (low, high) = compare.paired_gain(ours, theirs)
  assert gain == 0.25
  # Differences 0, 1, 1, -1: their deviation is sqrt(11 / 16).
  half = 1.96 * np.sqrt(11 / 16) / 2
  assert (low, high) == pytest.approx((0.25 - half, 0.25 + half))


@pytest.fixture(scope="module")
def compared(tmp_path_factory, tiny_model, make_tiny):
  """A search after a float training: its directory and its result."""
  config = make_tiny()
  config.bits = (2, 3, 4)
  config.budget = "bops=3bit"
  config.pretrain.steps = 4
  config.checkpoint_every = 2
  directory = tmp_path_factory.mktemp("compared")
  return directory, search_run.run_search(config, directory)


@pytest.mark.slow
def test_what_a_search_measures_can_be_measured_again(compared):
  directory, finished = compared
  measured = json.loads((directory / "measured.json").read_text())
  figures = finished.summary
  assert measured["images"] == figures["report_images"] == 50
  rows = measured["policies"]
  # The policy, uniform bits of its budget, and pairs within other budgets.
  assert rows[0] == {
    "kind": "searched",
    "cost": finished.policy.cost["bops"],
    "accuracy": figures["policy_accuracy"],
  }
  found = read.read_search(directory)
  assert rows[1] == {
    "kind": "uniform",
    "cost": asga_jax.result.uniform_policy(found).cost["bops"],
    "accuracy": figures["uniform_accuracy"],
  }
  assert {row["kind"] for row in rows[2:]} == {"searched", "uniform"}
  # Of the cheaper ones none can be met here.
  assert 2 < len(rows) <= 2 + 2 * len(compare.SHARES)
  low, high = figures["gain_interval"]
  gain = figures["policy_accuracy"] - figures["uniform_accuracy"]
  assert figures["gain_over_uniform"] == pytest.approx(gain)
  assert low <= gain <= high
  # The float network was evaluated on the same images, by its own command.
  of_float = json.loads((directory / "float" / "summary.json").read_text())
  assert figures["float_accuracy"] == pytest.approx(of_float["top1"])
  said = verdict.sentence(figures)
  assert said in summary.format_search(finished)
  assert said in " ".join((directory / "report.html").read_text().split())
  assert (directory / "pareto.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_search_starts_from_the_float_network_it_trained(compared, make_tiny):
  directory, _ = compared
  trained = asga_jax.load_run(directory / "float")
  config = make_tiny()
  config.pretrain.steps = 4
  info = search_run.build.describe_data(config)
  made = search_run.build_search(pretrain.with_weights(config, directory), info)
  kernel = made.state.params.weights["middle"]["kernel"]
  np.testing.assert_array_equal(
    np.asarray(nnx.as_pure(kernel)), trained.middle.kernel[...]
  )
  assert not config.weights.path


def test_float_weights_that_are_gone_are_no_reason_to_stop(
  make_tiny, tmp_path, caplog
):
  config = make_tiny()
  assert compare.judge_float(config, tmp_path, 10, None) is None
  config.weights.path = str(tmp_path / "gone.safetensors")
  assert compare.judge_float(config, tmp_path, 10, None) is None
  assert "the float network is not evaluated" in caplog.text


@pytest.mark.slow
def test_nothing_is_learned_of_a_head_that_was_not_trained(
  compared, make_tiny, tmp_path
):
  config = make_tiny()
  config.weights.path = str(compared[0] / "float" / "weights.safetensors")
  config.weights.skip = ("head/.*",)
  assert compare.judge_float(config, tmp_path, 10, None) is None
