"""A network filled in the layouts of PyTorch, and its own random streams."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import numpy as safetensors_numpy
from weights.arrays import write_arrays

import asga_jax


class Small(nnx.Module):
  """A strided and a grouped convolution, a norm, a linear layer, dropout."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 4, (3, 2), strides=2, padding=1, rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.grouped = nnx.Conv(
      4, 6, (3, 3), feature_group_count=2, padding=1, rngs=rngs
    )
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.out = nnx.Linear(6, 5, rngs=rngs)

  def __call__(self, images):
    x = self.grouped(nnx.relu(self.norm(self.conv(images))))
    return self.out(self.drop(x.mean(axis=(1, 2))))


SMALL_MAP = {
  "rules": [
    {
      "pattern": r"net\.(conv|grouped)\.weight",
      "path": r"\1/kernel",
      "layout": "o i h w -> h w i o",
    },
    {"pattern": r"net\.(\w+)\.running_(mean|var)", "path": r"norm/\2"},
    {"pattern": r"net\.bn\.weight", "path": "norm/scale"},
    {"pattern": r"net\.bn\.bias", "path": "norm/bias"},
    {"pattern": r"fc\.weight", "path": "out/kernel", "layout": "o i -> i o"},
    {"pattern": r"fc\.bias", "path": "out/bias"},
    {"pattern": r"net\.(.*)\.bias", "path": r"\1/bias"},
  ],
  "ignored": [".*num_batches_tracked"],
}


@pytest.fixture
def small_file(tmp_path):
  """What PyTorch would hold of `Small`, and its file."""
  rng = np.random.default_rng(0)
  shapes = {
    "net.conv.weight": (4, 3, 3, 2),
    "net.conv.bias": (4,),
    "net.bn.weight": (4,),
    "net.bn.bias": (4,),
    "net.bn.running_mean": (4,),
    "net.grouped.weight": (6, 2, 3, 3),
    "net.grouped.bias": (6,),
    "fc.weight": (5, 6),
    "fc.bias": (5,),
  }
  arrays = {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }
  arrays["net.bn.running_var"] = rng.uniform(0.5, 2, 4).astype(np.float32)
  arrays["net.bn.num_batches_tracked"] = np.int64(9)
  return arrays, write_arrays(tmp_path / "small.safetensors", arrays)


def _small_reference(arrays, images):
  """Compute `Small` in PyTorch's layouts, without a layer of Flax."""

  def conv(x, name, stride, groups):
    x = jax.lax.conv_general_dilated(
      x,
      arrays[f"{name}.weight"],
      (stride, stride),
      ((1, 1), (1, 1)),
      feature_group_count=groups,
      dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )
    return x + arrays[f"{name}.bias"][:, None, None]

  def channels(name):
    return arrays[f"net.bn.{name}"][:, None, None]

  x = conv(images.transpose(0, 3, 1, 2), "net.conv", 2, 1)
  x = (x - channels("running_mean")) / np.sqrt(channels("running_var") + 1e-5)
  x = np.maximum(x * channels("weight") + channels("bias"), 0)
  x = conv(x, "net.grouped", 1, 2).mean(axis=(2, 3))
  return x @ arrays["fc.weight"].T + arrays["fc.bias"]


@pytest.mark.parametrize("form", ["mapping", "json", "path"])
def test_a_file_in_the_layouts_of_pytorch_gives_its_logits(
  form, small_file, tmp_path
):
  arrays, path = small_file
  given = SMALL_MAP
  if form != "mapping":
    given = tmp_path / "map.json"
    given.write_text(json.dumps(SMALL_MAP))
    given = given if form == "path" else str(given)
  loaded = asga_jax.load_weights(Small(nnx.Rngs(0)), path, name_map=given)
  loaded.eval()
  images = np.random.default_rng(1).normal(size=(2, 8, 8, 3))
  images = images.astype(np.float32)
  np.testing.assert_allclose(
    loaded(images), _small_reference(arrays, images), rtol=1e-5, atol=1e-5
  )


def test_a_small_bias_before_a_norm_is_taken_into_its_mean(small_file):
  arrays, path = small_file
  folded = {"pattern": r"net\.conv\.bias", "path": "norm/mean"}
  rules = [{**folded, "subtract": True}, *SMALL_MAP["rules"]]
  loaded = asga_jax.load_weights(
    Small(nnx.Rngs(0)),
    path,
    name_map={**SMALL_MAP, "rules": rules},
    skip=["conv/bias"],
  )
  assert not loaded.conv.bias[...].any()
  loaded.eval()
  images = np.random.default_rng(1).normal(size=(2, 8, 8, 3))
  images = images.astype(np.float32)
  np.testing.assert_allclose(
    loaded(images), _small_reference(arrays, images), rtol=1e-5, atol=1e-5
  )


def test_random_streams_stay_those_of_the_network(tmp_path):
  asga_jax.save_weights(Small(nnx.Rngs(0)), tmp_path / "w.safetensors")
  names = safetensors_numpy.load_file(tmp_path / "w.safetensors")
  assert not any(name.startswith("drop") for name in names)
  first = asga_jax.load_weights(Small(nnx.Rngs(1)), tmp_path / "w.safetensors")
  second = asga_jax.load_weights(Small(nnx.Rngs(2)), tmp_path / "w.safetensors")
  images = jnp.ones((4, 8, 8, 3))
  first.train()
  second.train()
  assert not jnp.array_equal(first(images), second(images))
  first.eval()
  second.eval()
  np.testing.assert_array_equal(first(images), second(images))
