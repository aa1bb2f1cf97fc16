"""Searches and trainings on images that stay in their files."""

import json

import numpy as np
import pytest
from made_images import damage, leave_folders

from asga_jax import data
from asga_jax import policy as policy_lib
from asga_jax.data import batches
from asga_jax.runs import checkpoints, evaluate, workdir
from asga_jax.runs import config as config_lib
from asga_jax.runs import finetune as finetune_run
from asga_jax.runs import search as search_run
from asga_jax.training import sharding

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.fixture
def streamed(config, tmp_path):
  """Searches 96 images in folders for six steps, an epoch, of 16."""
  config.data.name = "train,val"
  config.data.dir = str(leave_folders(tmp_path / "images", counts=(32, 6)))
  config.data.stream = True
  config.data.preset = "tensorflow"
  config.data.pad = 0
  config.eval_batch_size = 16
  return config


def test_a_search_draws_its_batches_from_files(streamed):
  streamed.search.mode = "bilevel"
  config = config_lib.of_search(streamed)
  dataset = search_run.build.load_data(config)
  splits = search_run.split_proxy(config, dataset)
  made = list(
    search_run.make_batches(config, dataset, splits, 4, sharding.data_mesh())
  )
  assert len(made) == 2
  for step, pair in zip((4, 5), made, strict=True):
    for part, batch in zip((splits.train, splits.heldout), pair, strict=True):
      # Crops at random, of the images that this step of any run shows.
      wanted = batches.batch_at(
        part, step, batch_size=16, seed=config.search.seed, crops=True
      )
      for key in ("image", "label"):
        np.testing.assert_array_equal(batch[key], wanted[key])
      np.testing.assert_allclose(batch["mean"], 0.5)


@pytest.mark.slow
def test_a_search_meets_a_damaged_image_and_goes_on_when_it_may_skip_it(
  streamed, tmp_path
):
  # That which the first epoch shows in its fifth step.
  opened = search_run.build.load_data(streamed)
  images = np.arange(96)
  order = np.random.default_rng((streamed.search.seed, 0)).permutation(images)
  unlucky = int(order[16 * 4 + 3])
  names = opened.train_images.records.names
  damaged = tmp_path / "images" / "train" / names[unlucky].decode()
  damage(damaged)
  with pytest.raises(
    data.DataError, match=f"1 damaged image.*{damaged} cannot be decoded"
  ):
    search_run.run_search(streamed, tmp_path / "run")
  assert checkpoints.latest_step(tmp_path / "run" / "checkpoints") == 4
  streamed.data.bad_images = 1
  found = search_run.run_search(streamed, tmp_path / "run")
  policy = policy_lib.load(tmp_path / "run" / "policy.json")
  assert policy.layers == found.policy.layers
  told = policy.provenance["preprocessing"]
  assert told["preset"] == "tensorflow"
  assert told["steps"] == ["centre 0.875", "resize to 8"]
  # In one go, the same.
  search_run.run_search(streamed, tmp_path / "whole")
  for name in ("policy.json", "metrics.jsonl"):
    both = [(tmp_path / run / name).read_bytes() for run in ("run", "whole")]
    assert both[0] == both[1]


@pytest.mark.slow
def test_a_bilevel_search_and_a_training_take_them_too(streamed, tmp_path):
  streamed.search.mode = "bilevel"
  streamed.search.steps = streamed.finetune.steps = 2
  streamed.report_batches = 0
  search_run.run_search(streamed, tmp_path / "search")
  told = evaluate.evaluate_run(tmp_path / "search")
  assert told["images"] == 18
  finetune_run.run_finetuning(streamed, tmp_path / "float")
  summary = json.loads((tmp_path / "float" / "summary.json").read_text())
  assert summary["classes"] == 3


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"stream": False, "workers": 2}, r"workers is 2 and config\.data\.stream"),
    ({"stream": False, "bad_images": 1}, "bad_images is 1 .* expected 0"),
    ({"pad": 2}, r"pad is 2 and config\.data\.stream is True"),
    ({"workers": -1}, "workers is -1; expected at least 0"),
    ({"preset": "none"}, "preset is 'none'; expected one of torchvision"),
    ({"crop": 0.5}, "a preset alone"),
    ({"preset": ""}, "preset and normalisation are ''"),
    ({"classes": 2}, "of 3 classes, and classes is 2"),
  ],
)
def test_bad_settings_are_told_before_a_directory_is_taken(
  streamed, tmp_path, changes, message
):
  streamed.data.update(changes)
  with pytest.raises(ValueError, match=message):
    search_run.run_search(streamed, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_hash_is_of_what_decides_a_run(streamed):
  config = config_lib.of_search(streamed)
  before = workdir.config_sha256(config)
  config.data.workers = 5
  config.data.bad_images = 1
  assert workdir.config_sha256(config) == before
  config.data.stream = False
  assert workdir.config_sha256(config) != before
