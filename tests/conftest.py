"""A tiny network, its batches and one compiled search, shared by the tests."""

import os
import sys
from unittest import mock

import draws
import jax
import multihost  # noqa: F401, whose flags are those of scripts
import numpy as np
import process
import pytest
from absl import flags
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

import asga_jax
from asga_jax import models
from asga_jax.runs import config as config_lib

draws.compile_fast()


class TinyNetwork(nnx.Module):
  """Two convolutions, a norm and two linear layers: 8x8x1 to 3 classes."""

  def __init__(self, num_classes: int = 3, channels: int = 1, *, rngs):
    self.first = nnx.Conv(channels, 4, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.middle = nnx.Conv(4, 6, (3, 3), strides=2, rngs=rngs)
    self.inner = nnx.Linear(6, 5, rngs=rngs)
    self.head = nnx.Linear(5, num_classes, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    features = nnx.relu(self.norm(self.first(images)))
    features = nnx.relu(self.middle(features)).mean(axis=(1, 2))
    return self.head(nnx.relu(self.inner(features)))


class Perceptron(nnx.Module):
  """Two linear layers: 8x8x1 to 3 classes; it compiles fastest."""

  def __init__(self, *, rngs):
    self.hidden = nnx.Linear(64, 4, rngs=rngs)
    self.head = nnx.Linear(4, 3, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    return self.head(nnx.relu(self.hidden(images.reshape(len(images), -1))))


@pytest.fixture(scope="session")
def tiny_batches():
  """Batches of 16 images whose brightest third tells their class."""
  rng = np.random.default_rng(0)
  batches = []
  for _ in range(12):
    labels = rng.integers(0, 3, 16).astype(np.int32)
    images = rng.normal(size=(16, 8, 8, 1)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
      image[:, 2 * label : 2 * label + 3] += 1.5
    batches.append({"image": images, "label": labels})
  return batches


@pytest.fixture(scope="session")
def tiny_network():
  return TinyNetwork(rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def tiny_network_class():
  return TinyNetwork


@pytest.fixture(scope="session")
def tiny_searchable(tiny_network, tiny_batches):
  """`middle` and `inner` are searched; `first` and `head` have 8 bits."""
  return asga_jax.searchable(
    tiny_network, tiny_batches[0]["image"], bits=(2, 4, 8)
  )


@pytest.fixture(scope="session")
def perceptron(tiny_batches):
  """A searchable perceptron of two layers, both searched."""
  return asga_jax.searchable(
    Perceptron(rngs=nnx.Rngs(0)),
    tiny_batches[0]["image"],
    rules=[asga_jax.Rule(".*", weight_bits=(2, 4), activation_bits=(2, 4, 8))],
  )


@pytest.fixture(scope="session")
def compilations():
  """Grows by one whenever XLA compiles a program."""
  found = []

  def listen(event, *_, **__):
    if event.endswith("backend_compile_duration"):
      found.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return found


@pytest.fixture(scope="session")
def tiny_search(tiny_searchable):
  """A joint ASGA search whose step is compiled once for all tests.

  The step donates its state: hand it `sharding.place_replicated` copies.
  """
  return asga_jax.start_search(
    tiny_searchable,
    budget="bops=4bit",
    settings=asga_jax.SearchSettings(
      steps=12, learning_rate=0.1, logit_learning_rate=0.05, multiplier_rate=0.3
    ),
  )


@pytest.fixture(scope="module")
def script_flags():
  """Undo what a script does to its process: its flags, and what it prepares.

  Gives the mock that stands for `process.prepare`.
  """
  before = set(flags.FLAGS)
  with mock.patch.object(process, "prepare") as prepare:
    yield prepare
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
  """Keeps compiled programs for all tests of a run, in all of its workers.

  Networks, and calibrations of them, are the same in many tests.
  """
  place = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    place = place.parent  # of all workers of this run
  programs = place / "programs"
  programs.mkdir(exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(programs))
  # To read the smallest takes as long as to compile them.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  compilation_cache.reset_cache()  # it looked for a place while importing


@pytest.fixture(scope="module")
def tiny_model():
  """Adds the tiny network to those that a configuration may name."""

  def tiny(num_classes, *, stem, rngs, conv_general_dilated=None):
    del stem, conv_general_dilated
    return TinyNetwork(num_classes, 3, rngs=rngs)

  known = {**models.CONSTRUCTORS, "tiny": tiny}
  with mock.patch.object(models, "CONSTRUCTORS", known):
    yield


@pytest.fixture
def tiny_config():
  """Searches or trains the tiny network on 8x8 digits for six steps."""
  return make_tiny_config()


@pytest.fixture(scope="session")
def make_tiny():
  """A function that makes that configuration."""
  return make_tiny_config


def make_tiny_config():
  config = config_lib.default_config()
  config.model = "tiny"
  config.deployed.image_size = 8
  config.deployed.num_classes = 10
  config.data.name = "digits"
  config.data.image_size = 8
  config.data.pad = 1
  config.batch_size = 16
  config.eval_batch_size = 50
  config.report_batches = 1
  config.batch_norm_batches = 1
  config.bits = (2, 4)
  config.pretrain.steps = 0
  config.search.steps = 6
  config.search.logit_learning_rate = 0.2
  config.finetune.steps = 6
  config.checkpoint_every = 2
  config.flush_every = 2
  return config


@pytest.fixture(scope="session")
def contents():
  """A function that reads all files below a directory."""

  def read(directory):
    return {
      path.relative_to(directory): path.read_bytes()
      for path in sorted(directory.rglob("*"))
      if path.is_file()
    }

  return read


@pytest.fixture
def without_onnx(monkeypatch):
  """Be where the extra `onnx` is not installed."""
  monkeypatch.setitem(sys.modules, "onnx", None)
  # Put back afterwards, since it is imported again.
  monkeypatch.setattr(asga_jax.deploy, "onnx", asga_jax.deploy.onnx)
  for name in list(sys.modules):
    if name.startswith("asga_jax.deploy.onnx"):
      monkeypatch.delitem(sys.modules, name)
