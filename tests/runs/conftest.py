"""What the tests of runs share, and what they do without."""

import pathlib
from unittest import mock

import PIL.Image
import pytest
from tiny_runs import make_policy

from asga_jax import data as data_lib
from asga_jax import policy as policy_lib
from asga_jax.report import plots
from asga_jax.runs import config as config_lib
from asga_jax.runs import finetune


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


@pytest.fixture(scope="module")
def weights(make_tiny, tmp_path_factory):
  """Of the tiny network, trained a little on digits."""
  config = config_lib.of_finetune(make_tiny())
  config.finetune.steps = 1500
  config.finetune.learning_rate = 0.05
  config.data.pad = 0
  config.checkpoint_every = 5000
  path = tmp_path_factory.mktemp("float") / "run"
  finetune.run_finetuning(config, path)
  return path / "weights.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Images of digits without labels, in folders."""
  place = tmp_path_factory.mktemp("images")
  for index, image in enumerate(data_lib.load("digits").test_images[:100]):
    sub = place / f"part{index % 3}"
    sub.mkdir(exist_ok=True)
    PIL.Image.fromarray(image[..., 0]).save(sub / f"{index:03}.png")
  (place / "notes.txt").write_text("no image")
  return place
