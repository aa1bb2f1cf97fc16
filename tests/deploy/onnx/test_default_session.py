"""Exported files in sessions as a user opens them, at every optimization."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import nnx

import asga_jax
from asga_jax import models
from asga_jax.deploy.onnx import export as onnx_export

LEVELS = onnxruntime.GraphOptimizationLevel.__members__.values()
IMAGES = 200


class SmallVgg(nnx.Module):
  """Convolutions with a bias, without a norm; maxima between them."""

  def __init__(self, rngs):
    sizes = (3, 16, 24, 32)
    self.layers = nnx.List(
      [
        nnx.Conv(read, written, (3, 3), rngs=rngs)
        for read, written in itertools.pairwise(sizes)
      ]
    )
    self.hidden = nnx.Linear(128, 32, rngs=rngs)
    self.head = nnx.Linear(32, 10, rngs=rngs)

  def __call__(self, x):
    for layer in self.layers:
      x = nnx.max_pool(nnx.relu(layer(x)), (2, 2), strides=(2, 2))
    return self.head(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


class UNet(nnx.Module):
  """Down, up by a transposed convolution, and across; classes by pixel."""

  def __init__(self, rngs):
    self.first = nnx.Conv(3, 12, (3, 3), rngs=rngs)
    self.down = nnx.Conv(12, 24, (3, 3), strides=2, rngs=rngs)
    self.middle = nnx.Conv(24, 24, (3, 3), rngs=rngs)
    self.up = nnx.ConvTranspose(24, 12, (2, 2), strides=(2, 2), rngs=rngs)
    self.across = nnx.Conv(24, 12, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(12, rngs=rngs)
    self.last = nnx.Conv(12, 10, (1, 1), rngs=rngs)

  def __call__(self, x):
    first = nnx.relu(self.first(x))
    middle = nnx.relu(self.middle(nnx.relu(self.down(first))))
    both = jnp.concatenate([first, nnx.relu(self.up(middle))], axis=-1)
    return self.last(nnx.relu(self.norm(self.across(both))))


class Autoencoder(nnx.Module):
  """Convolutions to a code and transposed ones back."""

  def __init__(self, rngs):
    self.inner = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
    self.code = nnx.Conv(16, 8, (3, 3), strides=2, rngs=rngs)
    self.back = nnx.ConvTranspose(8, 16, (3, 3), strides=(2, 2), rngs=rngs)
    self.again = nnx.ConvTranspose(16, 16, (3, 3), strides=(2, 2), rngs=rngs)
    self.last = nnx.Conv(16, 10, (3, 3), rngs=rngs)

  def __call__(self, x):
    for layer in (self.inner, self.code, self.back, self.again):
      x = nnx.relu(layer(x))
    return self.last(x)


def _known(name, **settings):
  make = models.constructor(name)
  return lambda: make(10, stem="small", rngs=nnx.Rngs(0), **settings)


NETWORKS = {
  "resnet8": _known("resnet8"),
  "small vgg": lambda: SmallVgg(nnx.Rngs(0)),
  "u-net": lambda: UNet(nnx.Rngs(0)),
  "autoencoder": lambda: Autoencoder(nnx.Rngs(0)),
  "vit": _known("vit_ti", depth=1),
}
# Deep ones of random weights: classes of noise lie close, and codes on a border
# move some.
LARGE = {
  "resnet20": _known("resnet20"),
  "resnet18": _known("resnet18"),
  "mobilenet_v2": _known("mobilenet_v2"),
  "vgg16": _known("vgg16"),
  "vit_ti": _known("vit_ti"),
}
SIZES = {"vgg16": 32}


def _predictions(outputs):
  return outputs.argmax(-1)


@pytest.mark.parametrize(
  ("name", "bits"),
  [
    ("small vgg", (32, 4)),
    *(
      pytest.param(*each, marks=pytest.mark.slow)
      for each in [
        *itertools.product(LARGE, [(8, 8), (4, 4), (32, 4), (3, 32)]),
        *itertools.product(NETWORKS, [(8, 8)]),
        *(("u-net", (32, 4)), ("resnet8", (32, 4)), ("small vgg", (4, 4))),
        *itertools.product(["autoencoder"], [(32, 4), (4, 32)]),
      ]
    ),
  ],
)
def test_every_level_predicts_what_jax_predicts(name, bits):
  size = SIZES.get(name, 16)
  images = np.random.default_rng(1).standard_normal(
    (IMAGES, size, size, 3), np.float32
  )
  rule = asga_jax.Rule(".*", *bits)
  network = {**NETWORKS, **LARGE}[name]()
  model = asga_jax.searchable(network, images[:64], rules=[rule])
  model.eval()
  run = nnx.jit(lambda m, x: m(x))
  parts = np.split(images, 4)
  want = np.concatenate([jax.device_get(run(model, part)) for part in parts])
  content = onnx_export.export_onnx(model, images.shape[1:]).SerializeToString()
  for level in [None, *LEVELS]:
    options = onnxruntime.SessionOptions()
    if level is not None:
      options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(content, options)
    got = session.run(None, {"image": images})[0]
    same = _predictions(got) == _predictions(want)
    assert same.mean() >= (0.97 if name in LARGE else 0.995), level
    # A value on the border of two codes may fall on either side: few do.
    error = np.abs(got - want).reshape(IMAGES, -1).max(axis=1)
    assert np.median(error) < 0.05 * want.std(), level
