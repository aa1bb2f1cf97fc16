"""A search gives the start of a training, and is evaluated at its policy."""

import numpy as np
import pytest
from tiny_runs import start_training

import asga_jax
from asga_jax import conversion
from asga_jax import data as data_lib
from asga_jax.runs import evaluate as evaluate_run
from asga_jax.runs import read
from asga_jax.runs import search as search_run

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny_model, make_tiny):
  directory = tmp_path_factory.mktemp("search")
  config = make_tiny()
  config.search.preset = "sgd"
  search_run.run_search(config, directory)
  return directory


@pytest.mark.slow
def test_a_search_gives_its_weights_and_step_sizes(config, searched):
  config.finetune.policy = str(searched / "policy.json")
  config.finetune.start_from = str(searched)
  model = start_training(config)
  expected = conversion.with_policy(
    read.read_search(searched).model,
    asga_jax.load_policy(searched / "policy.json"),
  )
  images = np.random.default_rng(0).normal(size=(9, 8, 8, 3))
  answers = []
  for network in (model, expected):
    network.eval()
    answers.append(network(images.astype(np.float32)))
  np.testing.assert_array_equal(*answers)


@pytest.mark.slow
def test_a_search_is_evaluated_at_its_policy(searched, config):
  # The summary's accuracies rest on the first batch alone.
  dataset = data_lib.load("digits")
  assert config.report_batches == 1
  report = evaluate_run.evaluate_run(searched, split="train")
  assert report["images"] == len(dataset.train_labels)
  assert list(report["networks"]) == ["quantized"]
  with pytest.raises(ValueError, match=r"split='valid'.*'test', 'train'"):
    evaluate_run.evaluate_run(searched, split="valid")
