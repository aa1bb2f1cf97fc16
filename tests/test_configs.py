"""Every file of configs/ makes a configuration that a search accepts."""

import importlib.util
import pathlib

import pytest
from flax import nnx

from asga_jax.cost import macs
from asga_jax.runs import build, quantize_config
from asga_jax.runs import config as config_lib

# Their deployed networks take five seconds and more to trace.
LARGE = (
  "efficientnet_lite0",
  "mobilenetv2",
  "resnet18",
  "resnet50",
  "vit_s",
  "vit_ti",
)
CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def _load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  "path",
  [
    pytest.param(
      path,
      marks=pytest.mark.slow if path.stem in LARGE else (),
    )
    for path in CONFIGS
  ],
  ids=lambda path: path.stem,
)
def test_configuration_is_accepted(path):
  found = {}
  for variant in ("", "cifar10", "small", "cifar10,small"):
    config = found[variant] = _load(path).get_config(variant)
    config_lib.check_search_config(config)
    assert ("cifar10" in variant) == (config.data.name == "cifar10")
  assert found["small"].deployed == found["cifar10,small"].deployed
  # The deployed networks take the images that are said, as does the searched.
  network, shape = build.make_deployed(found[""])
  assert macs.network_stats(network, shape).paths
  network, shape = build.make_deployed(found["small"])
  assert shape == tuple(build.example_shape(found["small"]))
  searched = nnx.eval_shape(
    lambda: build.make_network(found["small"], 10, trained=False)
  )
  assert macs.network_stats(network, shape) == macs.network_stats(
    searched, shape
  )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_network_itself_on_imagenet(path):
  config = quantize_config.of_quantize(_load(path).get_config("imagenet"))
  config.weights.path = "trained.safetensors"
  config.post_training.source = "images"
  config.data.normalisation = config.data.normalisation or "torchvision"
  quantize_config.check(config)
  assert build.make_deployed(config)[1] == tuple(build.example_shape(config))
  assert config.stem == config.deployed.stem


def test_unknown_variant():
  with pytest.raises(ValueError, match=r"'tiny' is unknown; accepted: 'cifar"):
    _load(CONFIGS[0]).get_config("tiny")


def test_headers_name_the_command():
  for path in CONFIGS:
    text = _load(path).__doc__
    assert f"--config=configs/{path.name}" in text
    assert "arXiv" in text
