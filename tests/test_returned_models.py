"""What the Python calls return: copies, settled, in evaluation mode."""

import io
import sys

import jax
import numpy as np
import pytest
from absl import logging
from flax import nnx

import asga_jax
from asga_jax import finetune
from asga_jax.training import sharding


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture(scope="module")
def policy(tiny_searchable):
  search = asga_jax.start_search(tiny_searchable, budget="bops=4bit")
  return asga_jax.allocate(asga_jax.finish_search(search, search.state))


def _is_settled(model):
  """Whether no module is in training mode."""
  return all(
    getattr(module, "use_running_average", True)
    and getattr(module, "deterministic", True)
    for _, module in nnx.iter_modules(model)
  )


def _statistics(model):
  return np.concatenate([model.norm.mean[...], model.norm.var[...]])


@pytest.fixture
def training_network(tiny_network_class):
  """A network in training mode, as Flax makes them."""
  network = tiny_network_class(rngs=nnx.Rngs(0))
  network.train()
  return network


def test_every_returned_model_is_in_evaluation_mode(
  training_network, tiny_batches, policy, tmp_path
):
  assert not _is_settled(training_network)
  images = tiny_batches[0]["image"]
  searchable = asga_jax.searchable(training_network, images, bits=(2, 4, 8))
  searchable.train()
  search = asga_jax.start_search(searchable, budget="bops=4bit")
  result = asga_jax.finish_search(search, search.state)
  quantized = asga_jax.quantize(training_network, images, policy)
  training = finetune.start_training(quantized)
  file = tmp_path / "weights.safetensors"
  asga_jax.save_weights(training_network, file)
  packed = tmp_path / "packed.safetensors"
  fixed = asga_jax.with_policy(searchable, policy)
  asga_jax.save_packed(fixed, policy, packed)
  returned = {
    "finish": result.model,
    "with_policy": fixed,
    "quantize": quantized,
    "trained_model": finetune.trained_model(training, training.state),
    "load_weights": asga_jax.load_weights(training_network, file),
    "load_packed": asga_jax.load_packed(searchable, packed),
    "correct_bias": asga_jax.correct_bias(
      fixed, [images], reference=training_network
    ),
    "round_weights": asga_jax.round_weights(fixed, [images]),
    "reestimate": asga_jax.reestimate_batch_norm(training_network, [images]),
  }
  assert [name for name, x in returned.items() if not _is_settled(x)] == []
  # And those that were handed in stay as they were.
  assert not _is_settled(training_network)
  assert not _is_settled(searchable)


def test_batch_norm_of_a_fixed_network_is_estimated_anew(
  tiny_searchable, tiny_batches, policy, monkeypatch
):
  told = []
  monkeypatch.setattr(logging, "warning", lambda *args: told.append(args[0]))
  inputs = [batch["image"] for batch in tiny_batches[:4]]
  kept = asga_jax.with_policy(tiny_searchable, policy)
  np.testing.assert_array_equal(_statistics(kept), _statistics(tiny_searchable))
  assert any("batch norm keeps" in sentence for sentence in told)
  told.clear()
  anew = asga_jax.with_policy(tiny_searchable, policy, batches=inputs)
  assert told == []
  # The norm reads what the first layer makes of the images at its bits.
  read = np.asarray(anew.first(np.concatenate(inputs)), np.float64)
  np.testing.assert_allclose(
    anew.norm.mean[...], read.mean((0, 1, 2)), rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(anew.norm.var[...], read.var((0, 1, 2)), rtol=1e-4)
  again = asga_jax.reestimate_batch_norm(kept, inputs)
  np.testing.assert_array_equal(_statistics(again), _statistics(anew))
  with pytest.raises(ValueError, match="batches is empty"):
    asga_jax.reestimate_batch_norm(kept, [])


@pytest.mark.parametrize(
  "averaged", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_a_trained_model_outlives_the_next_step(
  tiny_searchable, tiny_batches, policy, averaged
):
  fixed = asga_jax.with_policy(tiny_searchable, policy)
  training = finetune.start_training(
    fixed, settings=asga_jax.FinetuneSettings(steps=3, ema_decay=0.5)
  )
  batch = sharding.place_batch(tiny_batches[0], training.mesh)
  state, _ = training.step(training.state, batch)
  model = finetune.trained_model(training, state, averaged=averaged)
  before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  training.step(state, batch)
  after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("stream", "progress", "shown"),
  [
    (Terminal, True, True),
    (Terminal, False, False),
    (io.StringIO, True, False),
  ],
)
def test_a_search_shows_steps_and_time_left_to_who_looks_on(
  perceptron, tiny_batches, monkeypatch, stream, progress, shown
):
  written = stream()
  monkeypatch.setattr(sys, "stderr", written)
  asga_jax.search_policy(
    perceptron,
    tiny_batches[:3],
    budget="bops=50%",
    settings=asga_jax.SearchSettings(steps=3),
    progress=progress,
  )
  text = written.getvalue()
  assert ("search: 100%" in text) == shown
  assert ("3/3" in text) == shown
  assert ("loss=" in text) == shown
