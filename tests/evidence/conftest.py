"""A small grid, of a network with random weights."""

import pytest
from flax import nnx

from asga_jax import models
from asga_jax.evidence import config as config_lib
from asga_jax.weights import load

CLASSES = 10


@pytest.fixture
def weights(tmp_path):
  network = models.constructor("resnet8")(CLASSES, rngs=nnx.Rngs(0))
  load.save_weights(network, tmp_path / "small.safetensors")
  return tmp_path / "small.safetensors"


@pytest.fixture
def config(weights):
  config = config_lib.default_config()
  config.name = "tiny"
  config.own = {
    "small": {
      "model": "resnet8",
      "weights": str(weights),
      "classes": CLASSES,
      "size": 32,
    }
  }
  config.networks = ("small",)
  config.methods = ("uniform", "random", "kl", "asga")
  config.proxies = {"p": {"source": "fashion_mnist_8k", "images": 64}}
  config.budgets = ("bops=4bit",)
  config.seeds = config.draws = 2
  config.targets = ("fashion_mnist_8k",)
  config.treatment = {"kind": "rounded", "proxy": "p"}
  config.primary = {
    "network": "small",
    "proxy": "p",
    "budget": "bops=4bit",
    "target": "fashion_mnist_8k",
    "first": "asga",
    "second": "uniform",
  }
  return config
