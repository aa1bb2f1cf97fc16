"""A run in Python gives the accuracy that its command reported."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax import data as data_lib
from asga_jax.runs import build, finetune, read, search
from asga_jax.runs import config as config_lib
from asga_jax.runs import data as run_data

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture(
  scope="module",
  params=["tiny", pytest.param("resnet8", marks=pytest.mark.slow)],
)
def config(request, make_tiny):
  """A network whose batch norms move when its bits are fixed.

  Its steps are those of other tests, and compiled once for all.
  """
  config = make_tiny()
  config.model, config.stem = request.param, "small"
  config.batch_norm_batches = config.report_batches = 2
  config.eval_batch_size = 100
  return config


@pytest.fixture(scope="module")
def searched(config, tmp_path_factory):
  path = tmp_path_factory.mktemp("run") / "search"
  search.run_search(config_lib.of_search(config), path)
  return path


def _accuracy(model, config):
  """Evaluate as a user does: the network called on prepared images."""
  dataset = data_lib.load("digits")
  prepare = build.make_prepare(config, dataset, train=False)
  raw = {"image": dataset.test_images[:200], "label": dataset.test_labels[:200]}
  images = prepare(jax.random.key(0), raw)["image"]
  logits = nnx.jit(lambda network, x: network(x))(model, images)
  return np.mean(np.argmax(logits, -1) == dataset.test_labels[:200])


def test_a_search(config, searched):
  told = json.loads((searched / "summary.json").read_text())
  loaded = asga_jax.load_run(searched)
  found = _accuracy(loaded, config)
  assert found == pytest.approx(told["policy_accuracy"], abs=1e-6)
  # And by hand, from the network of the search and its policy.
  result = read.read_search(searched)
  policy = asga_jax.load_policy(searched / "policy.json")
  data = run_data.of_run(searched)
  inputs = [np.asarray(batch) for batch in run_data.norm_inputs(data)]
  fixed = asga_jax.with_policy(result.model, policy, batches=inputs)
  found = _accuracy(fixed, config)
  assert found == pytest.approx(told["policy_accuracy"], abs=1e-6)
  for left, right in zip(
    jax.tree.leaves(nnx.state(fixed, nnx.BatchStat)),
    jax.tree.leaves(nnx.state(loaded, nnx.BatchStat)),
    strict=True,
  ):
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_fine_tuning(config, searched):
  path = searched.with_name("tuned")
  tuned = config_lib.of_finetune(config)
  tuned.finetune.policy = str(searched / "policy.json")
  finetune.run_finetuning(tuned, path)
  told = json.loads((path / "summary.json").read_text())
  found = _accuracy(asga_jax.load_run(path), config)
  assert found == pytest.approx(told["top1"], abs=1e-6)


def test_a_search_of_an_earlier_version_says_what_to_do(searched, tmp_path):
  older = tmp_path / "older"
  shutil.copytree(searched, older)
  (older / "weights.safetensors").unlink()
  with pytest.raises(ValueError, match=r"remove its summary\.json"):
    asga_jax.load_run(older)
