"""What is refused before a search, and how a search that fails ends."""

import os
from unittest import mock

import pytest

from asga_jax.runs import metrics as metrics_log
from asga_jax.runs import search as search_run
from asga_jax.training import loop

pytestmark = pytest.mark.usefixtures("tiny_model")


@pytest.mark.parametrize(
  ("key", "value", "named"),
  [
    ("search.preset", "asam", "asam"),
    ("search.prior_strength", 3.0, "prior_strength=3.0 and no prior"),
    ("search.steps", 0, "steps=0"),
    ("search.mode", "trilevel", "trilevel"),
    ("model", "resnet9", "resnet9"),
    ("bits", (), "bits"),
    ("bits", (2, 2), "2"),
    ("bits", (4,), r"bits is \(4,\).*nothing to search.*--policy=4bit"),
    (
      "rules",
      ({"pattern": ".*", "weight_bits": 4, "activation_bits": 4},),
      "nothing to search",
    ),
    ("bits", (4, 9), "9"),
    ("budget", "bops", "bops"),
    ("budget", "bops=1", r"lowest reachable: \d"),
    ("data.name", "cifar10", r"cifar10.*no_such_place"),
    ("data.image_size", 4, "size is 4, and images are 8x8"),
    ("rules", ({"pattern": "stage9", "weight_bits": 4},), "stage9"),
    ("rules", ({"pattern": ".*", "bits": 4},), r"rules\[0\]"),
    ("batch_size", 0, "batch_size is 0"),
    ("weight_quantizer", "lsq9", "lsq9"),
    ("weights.path", "nowhere.safetensors", r"nowhere\.safetensors"),
    ("weights.name_map", "timm", r"weights\.path is empty.*'timm'"),
  ],
)
def test_a_bad_value_is_an_error_before_the_first_step(
  config, tmp_path, key, value, named
):
  if key == "data.name":
    config.data.dir = str(tmp_path / "no_such_place")
  config.update_from_flattened_dict({key: value})
  with (
    mock.patch.object(loop, "run", side_effect=AssertionError),
    pytest.raises(ValueError, match=named),
  ):
    search_run.run_search(config, tmp_path / "run")
  assert not (tmp_path / "run" / "policy.json").exists()
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_unknown_key_is_named_with_the_closest(config, tmp_path):
  with config.unlocked():
    config.search.stepz = 3
  with pytest.raises(ValueError, match=r"config\.search\.stepz .*steps"):
    search_run.run_search(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_named(config, tmp_path):
  tmp_path.chmod(0o500)
  try:
    with pytest.raises(ValueError, match="cannot be written to"):
      search_run.run_search(config, tmp_path)
  finally:
    tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_the_directory_is_named(config, tmp_path):
  (tmp_path / "file").write_text("mine")
  with pytest.raises(ValueError, match="cannot be written to"):
    search_run.run_search(config, tmp_path / "file")
  assert (tmp_path / "file").read_text() == "mine"


def test_data_that_turn_out_bad_do_not_claim_the_directory(config, tmp_path):
  error = search_run.data_lib.DataError("image 7 is not like the first")
  with (
    mock.patch.object(search_run.data_lib, "load", side_effect=error),
    pytest.raises(search_run.data_lib.DataError, match="image 7"),
  ):
    search_run.run_search(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_split_over_the_devices(config, tmp_path):
  mesh = mock.Mock(shape={"data": 3})
  with (
    mock.patch.object(search_run.sharding, "data_mesh", return_value=mesh),
    pytest.raises(ValueError, match=r"batch_size=16 .* 3 devices"),
  ):
    search_run.run_search(config, tmp_path)


@pytest.mark.slow
def test_a_search_that_diverges_names_step_and_checkpoint(config, tmp_path):
  config.search.preset = "sgd"
  config.search.learning_rate = 1e30
  config.flush_every = 1
  with pytest.raises(loop.DivergedError, match=r"of step \d is .*checkpoint"):
    search_run.run_search(config, tmp_path)
  assert not (tmp_path / "policy.json").exists()
  records = metrics_log.read_metrics(tmp_path / "metrics.jsonl")
  # The record of the bad step is kept, its figure as null.
  assert None in records[-1].values()
