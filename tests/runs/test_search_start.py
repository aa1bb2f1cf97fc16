"""A search is built and compiled before its data are read."""

import threading
from unittest import mock

import jax
import numpy as np
import pytest

import asga_jax
from asga_jax.data import batches as batches_lib
from asga_jax.runs import build, read, search_start
from asga_jax.runs import config as config_lib
from asga_jax.runs import search as search_run
from asga_jax.scores import measured

pytestmark = pytest.mark.usefixtures("tiny_model")


def test_the_state_is_that_of_a_network_made_with_the_images(config):
  dataset = search_run.data_lib.load("digits")
  splits = search_run.split_proxy(config, dataset)
  made = search_start.set_ranges(
    config, search_run.build_search(config, dataset.info), dataset, splits
  )
  raw = batches_lib.batch_at(
    splits.train, 0, batch_size=config.batch_size, seed=config.search.seed
  )
  plain = build.make_prepare(config, dataset, train=False)
  images = plain(jax.random.key(0), raw)["image"]
  model = build.make_searchable(config, dataset.num_classes, images)
  at_once = asga_jax.start_search(
    model, budget=config.budget, settings=made.settings
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    made.state._replace(key=0),
    at_once.state._replace(key=0),
  )
  signs = [c[1].min() for c in jax.tree.leaves(made.state.rest) if c.ndim == 2]
  assert {bool(sign < 0) for sign in signs} == {True, False}


def test_the_step_is_compiled_while_data_are_read(config, tmp_path):
  load, compiling = search_run.data_lib.load, jax.stages.Lowered.compile
  loaded = threading.Event()

  def load_then_tell(*args, **kwargs):
    dataset = load(*args, **kwargs)
    loaded.set()
    return dataset

  def compile_after_loading(self, *args, **kwargs):
    assert loaded.wait(60), "who compiles waits for data"
    return compiling(self, *args, **kwargs)

  with (
    mock.patch.object(search_run.data_lib, "load", load_then_tell),
    mock.patch.object(jax.stages.Lowered, "compile", compile_after_loading),
  ):
    search_run.run_search(config, tmp_path / "run")
  assert (tmp_path / "run" / "policy.json").exists()


def test_an_error_of_the_compiler_ends_the_run(config, tmp_path):
  error = RuntimeError("no memory for the program")
  with (
    mock.patch.object(jax.stages.Lowered, "compile", side_effect=error),
    pytest.raises(RuntimeError, match="no memory"),
  ):
    search_run.run_search(config, tmp_path / "run")


@pytest.mark.slow
def test_logits_start_from_scores_that_the_directory_keeps(config, tmp_path):
  config.prior.update(score="kl", images=16)
  config.search.update(logit_learning_rate=0.0, prior_strength=3.0)
  directory = tmp_path / "run"
  search_run.run_search(config, directory)
  found = read.read_search(directory)
  kept = measured.read_scores(directory / "prior.json", found.space)
  # Logits that stay are the scores, up to a constant, at any temperature.
  for group, values in kept.items():
    learned = found.scores["log_prob"][group]
    scaled = (learned - learned[0]) * (values[-1] - values[0])
    wanted = (values - values[0]) * (learned[-1] - learned[0])
    np.testing.assert_allclose(scaled, wanted, rtol=1e-3, atol=1e-6)
  assert any(x[-1] > x[0] for x in found.scores["log_prob"].values())
  for changed in ({"score": ""}, {"images": 0}, {"score": "log_prob"}):
    bad = config.copy_and_resolve_references()
    bad.prior.update(changed)
    with pytest.raises(ValueError, match=r"config\.prior|prior_strength"):
      config_lib.check_search_config(config_lib.of_search(bad))
