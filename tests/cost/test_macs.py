"""MACs and weights against published figures and counting by hand."""

import functools

import jax
import pytest
from flax import nnx

from asga_jax import models
from asga_jax.cost import costs, macs
from asga_jax.network import program


@functools.cache
def _abstract(name, **settings):
  return nnx.eval_shape(
    lambda: models.constructor(name)(1000, rngs=nnx.Rngs(0), **settings)
  )


# MACs as HAWQ-V3 and ABS give them in their tables of bit operations (1858 G
# and 308.0 G of float32), those of ResNet-50 and the parameters as
# torchvision's documentation does.
@pytest.mark.parametrize(
  ("name", "expected_macs", "parameters", "buffers"),
  [
    ("resnet18", 1814.07e6, 11_689_512, 2 * 4_800),
    ("mobilenet_v2", 300.77e6, 3_504_872, 2 * 17_056),
    ("vgg16", 15.47e9, 138_365_992 - 4_224, 2 * 4_224),
    ("vit_ti", 1074.9e6, 5_717_416 - 197 * 192, 0),
    *(
      pytest.param(*each, marks=pytest.mark.slow)
      for each in [
        ("resnet50", 4089.18e6, 25_557_032, 2 * 26_560),
        ("vit_s", 4241.2e6, 22_050_664 - 197 * 384, 0),
      ]
    ),
  ],
)
def test_published_figures(name, expected_macs, parameters, buffers):
  stats = macs.network_stats(_abstract(name), (224, 224, 3))
  total = sum(layer.macs for layer in stats.layers)
  assert total == pytest.approx(expected_macs, rel=1e-4)
  weights = sum(layer.weights for layer in stats.layers)
  assert weights + stats.float_parameters == parameters + buffers
  assert stats.paths[0] in ("stem", "features/0", "patches")
  assert stats.paths[-1] == "head"


@pytest.mark.slow
def test_the_stride_in_the_first_convolution_of_resnet50_saves_macs():
  totals = [
    sum(
      layer.macs
      for layer in macs.network_stats(_abstract(name), (224, 224, 3)).layers
    )
    for name in ("resnet50", "resnet50_v1")
  ]
  # A 1x1 convolution of half as many outputs as inputs, at a quarter of places.
  saved = sum(
    inputs * inputs // 2 * (size**2 - (size // 2) ** 2)
    for inputs, size in ((256, 56), (512, 28), (1024, 14))
  )
  assert totals[0] - totals[1] == saved


# In G at 32, 8, 4 and 2 bits, the last two with the first and last layer at 8;
# HAWQ-V3's and ABS's tables have 1858, 116 and 34, and 308.0.
@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("resnet18", {32: 1857.6, 8: 116.1, 4: 34.71, 2: 14.37}),
    ("resnet50", {32: 4187.3, 8: 261.7, 4: 71.19, 2: 23.6}),
    ("mobilenet_v2", {32: 308.0, 8: 19.25, 4: 5.39, 2: 1.93}),
  ],
)
def test_bit_operations(name, expected):
  stats = macs.network_stats(_abstract(name), (224, 224, 3))
  for bits, giga in expected.items():
    chosen = dict.fromkeys(stats.paths, (bits, bits))
    ends = (max(bits, 8),) * 2
    chosen[stats.paths[0]] = chosen[stats.paths[-1]] = ends
    found = costs.total_cost(stats, chosen, costs.BOPS)
    # As exact as the digits given.
    assert found == pytest.approx(giga * 1e9, rel=3e-3)


class Net(nnx.Module):
  """A strided, a depthwise and a shared layer."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.z_stem = nnx.Conv(3, 8, (3, 5), strides=2, rngs=rngs)
    self.depthwise = nnx.Conv(
      8, 16, (3, 3), feature_group_count=8, padding="VALID", rngs=rngs
    )
    self.norm = nnx.BatchNorm(16, rngs=rngs)
    self.shared = nnx.Linear(16, 16, use_bias=False, rngs=rngs)
    self.unused = nnx.Linear(16, 3, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    x = self.norm(self.depthwise(self.z_stem(x)))
    return self.shared(self.dropout(self.shared(x).mean(axis=(1, 2))))


def test_counted_by_hand():
  stats = macs.network_stats(nnx.eval_shape(Net), (11, 8, 3))
  # Outputs of 6x4, then 4x2; the shared layer at 8 positions and once more.
  assert stats.layers == (
    costs.LayerStats("z_stem", 6 * 4 * 8 * 3 * 3 * 5, 3 * 5 * 3 * 8),
    costs.LayerStats("depthwise", 4 * 2 * 16 * 3 * 3, 3 * 3 * 16),
    costs.LayerStats("shared", (4 * 2 + 1) * 16 * 16, 16 * 16),
  )
  # Two biases, a norm's four vectors, and a layer that is not called.
  assert stats.float_parameters == 8 + 16 + 4 * 16 + (16 * 3 + 3)


def test_the_model_is_not_changed():
  model = Net()
  before = [leaf.tolist() for leaf in jax.tree.leaves(_numbers(model))]
  macs.network_stats(model, (11, 8, 3))
  after = [leaf.tolist() for leaf in jax.tree.leaves(_numbers(model))]
  assert after == before
  assert model.shared.dot_general is jax.lax.dot_general


def _numbers(model):
  return nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))


def test_no_array_is_made():
  model = nnx.eval_shape(Net)
  macs.network_stats(model, (11, 8, 3))
  for leaf in jax.tree.leaves(nnx.state(model)):
    assert isinstance(leaf, jax.ShapeDtypeStruct)


def test_other_method_and_paths():
  class Two(nnx.Module):
    def __init__(self):
      self.tail = nnx.List([nnx.Linear(4, 5, rngs=nnx.Rngs(0))])

    def encode(self, x):
      return self.tail[0](x)

  stats = macs.network_stats(Two(), (7, 4), method="encode")
  assert stats.layers == (costs.LayerStats("tail/0", 7 * 4 * 5, 20),)
  assert list(program.find_callers(Two())) == list(stats.paths)


def test_no_layers():
  with pytest.raises(ValueError, match=r"BatchNorm.*no layer"):
    macs.network_stats(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), (8, 8, 3))


class Conditional(nnx.Module):
  """One branch calls `shared` once, the other twice and `other`."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.shared = nnx.Linear(6, 6, rngs=rngs)
    self.other = nnx.Linear(6, 6, rngs=rngs)

  def __call__(self, x):
    return nnx.cond(
      x.sum() > 0,
      lambda model, x: model.shared(x),
      lambda model, x: model.other(model.shared(model.shared(x))),
      self,
      x,
    )


def test_a_branch_that_is_taken_is_counted():
  stats = macs.network_stats(nnx.eval_shape(Conditional), (6,))
  found = {layer.path: layer.macs for layer in stats.layers}
  assert found == {"shared": 2 * 36, "other": 36}
