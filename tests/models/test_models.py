"""The networks against published counts and properties of their blocks."""

import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from asga_jax import models
from asga_jax.models import layers, mobilenet_v2, resnet


@functools.cache
def _abstract(name, *args, **settings):
  return nnx.eval_shape(
    lambda: models.constructor(name)(*args, rngs=nnx.Rngs(0), **settings)
  )


def _forward(model, images):
  return nnx.eval_shape(lambda model, images: model(images), model, images)


def _parameter_count(model):
  params = nnx.state(model, nnx.Param)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _layer_paths(model):
  return [
    path
    for path, module in nnx.iter_modules(model)
    if isinstance(module, nnx.Conv | nnx.Linear | nnx.BatchNorm)
  ]


# The large ones: torchvision's documentation of its weights; of the vision
# transformers DeiT's, less its learned positions of 197 tokens, of VGG-16 less
# the biases before batch norms. The small ones:
# 3x3 kernels, 1x1 shortcuts, two numbers a channel of every norm and the head,
# added by hand; with option A shortcuts ResNet-20 has 269,722, and ResNet-56
# the 0.85 M of the paper's table 6. EfficientNet-Lite: timm's table.
@pytest.mark.parametrize(
  ("name", "classes", "expected"),
  [
    ("resnet18", 1000, 11_689_512),
    ("resnet50", 1000, 25_557_032),
    ("resnet50_v1", 1000, 25_557_032),
    ("vgg16", 1000, 138_365_992 - 4_224),
    ("vit_ti", 1000, 5_717_416 - 197 * 192),
    pytest.param("vit_s", 1000, 22_050_664 - 197 * 384, marks=pytest.mark.slow),
    ("mobilenet_v2", 1000, 3_504_872),
    ("resnet20", 10, 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)),
    ("resnet20_a", 10, 269_722),
    ("resnet56_a", 10, 853_018),
    ("resnet8", 10, 78_042),
    ("efficientnet_lite0", 1000, 4_652_008),
    pytest.param(
      "efficientnet_lite4", 1000, 13_006_568, marks=pytest.mark.slow
    ),
  ],
)
def test_parameter_counts(name, classes, expected):
  # As in the topology below.
  settings = {"stem": "imagenet"} if classes == 1000 else {}
  assert _parameter_count(_abstract(name, classes, **settings)) == expected


@pytest.mark.slow
def test_mobilenet_v2_width_rounds_to_multiples_of_eight():
  model = _abstract("mobilenet_v2", 1000, width=0.75)
  channels = {norm.num_features for norm in _norms(model)}
  assert all(c % 8 == 0 for c in channels)
  assert model.head.in_features == 1280
  assert model.blocks[0].project.out_features == 16
  assert model.blocks[1].project.out_features == 24
  assert model.blocks[16].project.out_features == 240
  assert _abstract("mobilenet_v2", 10, width=1.4).head.in_features == 1792


def _norms(model):
  return [m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.BatchNorm)]


# Of a family that differs in numbers alone, the smallest.
@pytest.mark.parametrize(
  "name",
  sorted(
    set(models.CONSTRUCTORS)
    - {
      "resnet56",
      "resnet56_a",
      "vit_s",
      *(f"efficientnet_lite{i}" for i in range(1, 5)),
    }
  ),
)
def test_topology_is_that_of_every_stem_and_class_count(name):
  large = _abstract(name, 1000, stem="imagenet")
  small = _abstract(name, 7, stem="small", in_channels=1)
  assert _layer_paths(large) == _layer_paths(small)


def test_paths_are_those_that_policies_name():
  paths = {
    name: {"/".join(map(str, p)) for p in _layer_paths(_abstract(name, 10))}
    for name in ("resnet18", "mobilenet_v2")
  }
  assert {"stem", "stages/0/1/conv2", "stages/1/0/shortcut", "head"} <= paths[
    "resnet18"
  ]
  assert "stages/0/0/shortcut" not in paths["resnet18"]
  assert {"stem", "blocks/0/depthwise", "blocks/16/project", "last"} <= paths[
    "mobilenet_v2"
  ]
  assert "blocks/0/expand" not in paths["mobilenet_v2"]


@pytest.mark.parametrize(
  ("name", "stem", "size", "last_map"),
  [
    ("resnet18", "imagenet", 224, (1, 7, 7, 512)),
    ("resnet18", "small", 32, (1, 4, 4, 512)),
    ("resnet20", "small", 32, (1, 8, 8, 64)),
    ("resnet20_a", "small", 32, (1, 8, 8, 64)),
    ("mobilenet_v2", "imagenet", 224, (1, 7, 7, 1280)),
    *(
      pytest.param(*each, marks=pytest.mark.slow)
      for each in [
        ("efficientnet_lite0", "imagenet", 224, (1, 7, 7, 1280)),
        ("mobilenet_v2", "small", 32, (1, 4, 4, 1280)),
      ]
    ),
  ],
)
def test_every_convolution_goes_through_the_injected_one(
  name, stem, size, last_map
):
  calls = []

  def recording(*args, **kwargs):
    out = jax.lax.conv_general_dilated(*args, **kwargs)
    calls.append((kwargs["feature_group_count"], out.shape))
    return out

  model = _abstract(name, 10, stem=stem, conv_general_dilated=recording)
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  assert _forward(model, images).shape == (1, 10)
  convolutions, depthwise = {
    "resnet18": (20, 0),
    "resnet20": (21, 0),
    "resnet20_a": (19, 0),
    "efficientnet_lite0": (49, 16),
    "mobilenet_v2": (52, 17),
  }[name]
  assert len(calls) == convolutions
  assert sum(groups > 1 for groups, _ in calls) == depthwise
  assert calls[-1][1] == last_map


@pytest.mark.slow
def test_train_moves_statistics_and_eval_leaves_them():
  model = nnx.jit(lambda: resnet.resnet8(5, rngs=nnx.Rngs(0)))()
  images = 3 + jax.random.normal(jax.random.key(0), (4, 16, 16, 3))

  @nnx.jit
  def forward(model, images):
    return model(images)

  model.train()
  assert forward(model, images).shape == (4, 5)
  stem_out = np.asarray(model.stem(images))
  # One step from 0 and 1 with momentum 0.9, statistics over N, H and W.
  np.testing.assert_allclose(
    model.stem_norm.mean[...], 0.1 * stem_out.mean((0, 1, 2)), atol=1e-5
  )
  np.testing.assert_allclose(
    model.stem_norm.var[...],
    0.9 + 0.1 * stem_out.var((0, 1, 2)),
    rtol=1e-4,
  )
  before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
  model.eval()
  alone = forward(model, images[:1])
  np.testing.assert_allclose(forward(model, images)[:1], alone, atol=1e-4)
  after = nnx.to_pure_dict(nnx.state(model))
  jax.tree.map(np.testing.assert_array_equal, before, after)


def _factories():
  rngs = nnx.Rngs(0)
  return {
    "conv": lambda *a, **k: layers.conv(*a, rngs=rngs, **k),
    "norm": lambda *a, **k: layers.batch_norm(*a, rngs=rngs, **k),
  }


@pytest.mark.slow
def test_block_whose_last_norm_is_zero_is_its_shortcut():
  x = jax.random.normal(jax.random.key(1), (2, 6, 6, 8))
  block = resnet.Block(8, 8, stride=1, **_factories())
  block.norm2.scale[...] = jnp.zeros(8)
  np.testing.assert_array_equal(block(x), np.maximum(x, 0))

  inverted = mobilenet_v2.InvertedResidual(
    8, 8, expansion=6, stride=1, **_factories()
  )
  inverted.project_norm.scale[...] = jnp.zeros(8)
  np.testing.assert_array_equal(inverted(x), x)
  reducing = mobilenet_v2.InvertedResidual(
    8, 8, expansion=6, stride=2, **_factories()
  )
  reducing.project_norm.scale[...] = jnp.zeros(8)
  np.testing.assert_array_equal(reducing(x), np.zeros((2, 3, 3, 8)))


def test_kernels_are_he_normal_in_fan_out():
  conv = layers.conv(64, 128, 3, rngs=nnx.Rngs(0))
  assert np.std(conv.kernel[...]) == pytest.approx(
    math.sqrt(2 / (9 * 128)), rel=0.01
  )
  depthwise = layers.conv(960, 960, 3, groups=960, rngs=nnx.Rngs(0))
  assert depthwise.kernel.shape == (3, 3, 1, 960)
  assert np.std(depthwise.kernel[...]) == pytest.approx(
    math.sqrt(2 / 9), rel=0.03
  )


@pytest.mark.parametrize(
  ("settings", "parameters", "output"),
  [
    ({"param_dtype": jnp.float64}, "float64", "float64"),
    ({"dtype": jnp.bfloat16}, "float32", "bfloat16"),
    ({}, "float32", "float32"),
  ],
)
def test_a_step_keeps_the_types_of_parameters_and_statistics(
  settings, parameters, output
):
  def step():
    model = resnet.resnet8(10, rngs=nnx.Rngs(0), **settings)
    before = nnx.state(model, nnx.Param, nnx.BatchStat)
    logits = model(jnp.ones((2, 8, 8, 3), parameters))
    return before, logits, nnx.state(model, nnx.Param, nnx.BatchStat)

  with jax.enable_x64(True):
    before, logits, after = jax.eval_shape(step)
  for state in (before, after):
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {
      np.dtype(parameters)
    }
  assert logits.dtype == output


def test_shortcuts_without_parameters_are_those_of_option_a():
  x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
  want = np.zeros((2, 3, 3, 8), np.float32)
  # Five channels are missing: two before and three after.
  want[..., 2:5] = x[:, ::2, ::2]
  found = resnet.pad_shortcut(jnp.asarray(x), 2, 8)
  np.testing.assert_array_equal(found, want)
  # Where the shape stays nothing is added.
  blocks = _abstract("resnet20_a", 10).stages[1]
  assert [block.pads for block in blocks] == [True, False, False]
  assert all(block.shortcut is None for block in blocks)


@pytest.mark.parametrize(("kernel", "size"), [(3, 6), (5, 7), (5, 8)])
def test_same_padding_is_tensorflows(kernel, size):
  x = jax.random.normal(jax.random.key(0), (1, size, size, 2))
  layer = layers.conv(
    2, 2, kernel, stride=2, groups=2, padding="same", rngs=nnx.Rngs(0)
  )
  out = -(-size // 2)
  # Of the padding that is missing the smaller half comes first.
  total = max(2 * (out - 1) + kernel - size, 0)
  margin = (total // 2, total - total // 2)
  padded = np.pad(x, ((0, 0), margin, margin, (0, 0)))
  want = np.zeros((1, out, out, 2))
  weights = np.asarray(layer.kernel[...])
  for row in range(out):
    for column in range(out):
      window = padded[:, 2 * row :, 2 * column :][:, :kernel, :kernel]
      want[:, row, column] = (window * weights[:, :, 0]).sum((1, 2))
  np.testing.assert_allclose(layer(x), want, atol=1e-5)


def test_an_efficientnet_lite_pads_and_norms_as_in_tensorflow():
  model = _abstract("efficientnet_lite0", 10)
  convolutions = [
    m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.Conv)
  ]
  assert {layer.padding for layer in convolutions} == {"SAME"}
  assert {norm.epsilon for norm in _norms(model)} == {1e-3}
  other = _abstract("efficientnet_lite0", 10, padding="symmetric")
  assert other.blocks[3].depthwise.padding == 2


def test_bad_names_are_refused():
  with pytest.raises(ValueError, match=r"'resnet19'.*resnet18"):
    models.constructor("resnet19")
  with pytest.raises(ValueError, match=r"stem is 'tiny'.*imagenet, small"):
    _abstract("resnet8", 10, stem="tiny")
  with pytest.raises(ValueError, match="width is 0"):
    _abstract("mobilenet_v2", 10, width=0)
  with pytest.raises(ValueError, match=r"padding is 'VALID'.*symmetric, same"):
    _abstract("efficientnet_lite0", 10, padding="VALID")
  with pytest.raises(ValueError, match=r"shortcuts is 'B'.*projection, zeros"):
    _abstract("resnet20", 10, shortcuts="B")


@pytest.mark.parametrize(
  ("name", "shape", "settings", "message"),
  [
    ("vgg16", (100, 100), {}, r"\(100, 100\) end in a map of \(3, 3\).*of 7"),
    ("vit_ti", (30, 32), {"stem": "small"}, r"\(30, 32\).*multiples.*4"),
  ],
)
def test_images_that_do_not_fit_are_refused(name, shape, settings, message):
  model = _abstract(name, 10, **settings)
  with pytest.raises(ValueError, match=message):
    _forward(model, jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32))
