"""Files in the names of torchvision and timm, made by an inverse of our own.

The numbers of entries are those of `state_dict()` in torchvision 0.28, timm
1.0.31 and the published files (that of ResNet-20 has no counts of batches). The
networks are as deep as published and narrower.
"""

import functools

import numpy as np
import pytest
from flax import nnx
from weights.arrays import variables_of
from weights.torch_files import fill_at_random, write_as_torch

import asga_jax
from asga_jax.models import efficientnet_lite, mobilenet_v2, resnet


def _resnet_module(first, *rest):
  if not rest:
    return {"stem": "conv1", "stem_norm": "bn1", "head": "fc"}[first]
  stage, block, layer = rest
  layer = layer.replace("shortcut_norm", "downsample.1")
  layer = layer.replace("shortcut", "downsample.0").replace("norm", "bn")
  return f"layer{int(stage) + 1}.{block}.{layer}"


def _torchvision_mobilenet_module(first, *rest):
  if not rest:
    return {
      "stem": "features.0.0",
      "stem_norm": "features.0.1",
      "last": "features.18.0",
      "last_norm": "features.18.1",
      "head": "classifier.1",
    }[first]
  block, layer = rest
  kinds = {
    "expand": "0.0",
    "expand_norm": "0.1",
    "depthwise": "1.0",
    "depthwise_norm": "1.1",
    "project": "2",
    "project_norm": "3",
  }
  if block == "0":
    kinds = {
      "depthwise": "0.0",
      "depthwise_norm": "0.1",
      "project": "1",
      "project_norm": "2",
    }
  return f"features.{int(block) + 1}.conv.{kinds[layer]}"


def _timm_mobilenet_module(first, *rest):
  if not rest:
    return {
      "stem": "conv_stem",
      "stem_norm": "bn1",
      "last": "conv_head",
      "last_norm": "bn2",
      "head": "classifier",
    }[first]
  block, layer = rest
  starts = np.cumsum([0, 1, 2, 3, 4, 3, 3])
  stage = int(np.searchsorted(starts, int(block), side="right")) - 1
  order = ["expand", "depthwise", "project"]
  names = ["conv_pw", "conv_dw", "conv_pwl"]
  if block == "0":
    order, names = ["depthwise", "project"], ["conv_dw", "conv_pw"]
  index = order.index(layer.removesuffix("_norm"))
  kind = f"bn{index + 1}" if layer.endswith("_norm") else names[index]
  return f"blocks.{stage}.{int(block) - starts[stage]}.{kind}"


def _efficientnet_module(first, *rest):
  if not rest:
    return {
      "stem": "_conv_stem",
      "stem_norm": "_bn0",
      "last": "_conv_head",
      "last_norm": "_bn1",
      "head": "_fc",
    }[first]
  block, layer = rest
  kind = {
    "expand": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "project": "_project_conv",
    "project_norm": "_bn2",
  }[layer]
  return f"_blocks.{block}.{kind}"


def _cifar_module(first, *rest):
  return "linear" if first == "head" else _resnet_module(first, *rest)


def _efficientnet():
  return efficientnet_lite.EfficientNetLite(
    5, stem="imagenet", width=0.1, rngs=nnx.Rngs(0)
  )


def _resnet20():
  return resnet.resnet20(shortcuts="zeros", rngs=nnx.Rngs(0))


def _resnet18(classes=5):
  return resnet.ResNet(
    classes,
    blocks=(2, 2, 2, 2),
    widths=(4, 6, 8, 10),
    stem="imagenet",
    rngs=nnx.Rngs(0),
  )


def _resnet50():
  return resnet.ResNet(
    5,
    blocks=(3, 4, 6, 3),
    widths=(8, 12, 16, 20),
    stem="imagenet",
    block=resnet.Bottleneck,
    stem_width=6,
    rngs=nnx.Rngs(0),
  )


def _mobilenet():
  return mobilenet_v2.mobilenet_v2(5, width=0.1, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
  ("make", "module_name", "name_map", "entries"),
  [
    (_resnet18, _resnet_module, "torchvision", 122),
    (_resnet18, _resnet_module, "timm", 122),
    pytest.param(
      _resnet50, _resnet_module, "torchvision", 320, marks=pytest.mark.slow
    ),
    pytest.param(
      *(_mobilenet, _torchvision_mobilenet_module, "torchvision", 314),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      _mobilenet, _timm_mobilenet_module, "timm", 314, marks=pytest.mark.slow
    ),
    pytest.param(
      *(_efficientnet, _efficientnet_module, "efficientnet_pytorch", 296),
      marks=pytest.mark.slow,
    ),
    (_resnet20, _cifar_module, "resnet_cifar10", 97 + 19),
  ],
)
def test_every_entry_of_a_published_file_finds_its_variable(
  make, module_name, name_map, entries, tmp_path
):
  model = fill_at_random(make)
  file = tmp_path / "w.safetensors"
  arrays = write_as_torch(variables_of(model), module_name, file)
  assert len(arrays) == entries
  loaded = asga_jax.load_weights(nnx.eval_shape(make), file, name_map=name_map)
  found = variables_of(loaded)
  for name, array in variables_of(model).items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_published_names_word_for_word(tmp_path):
  names = set(
    write_as_torch(
      variables_of(fill_at_random(_resnet18)), _resnet_module, tmp_path / "a"
    )
  )
  assert {
    "conv1.weight",
    "bn1.running_mean",
    "layer1.0.conv1.weight",
    "layer2.0.downsample.0.weight",
    "layer2.0.downsample.1.running_var",
    "layer4.1.bn2.num_batches_tracked",
    "fc.bias",
  } < names
  variables = variables_of(fill_at_random(_mobilenet))
  names = set(
    write_as_torch(variables, _torchvision_mobilenet_module, tmp_path / "b")
  )
  assert {
    "features.0.0.weight",
    "features.1.conv.0.0.weight",
    "features.1.conv.1.weight",
    "features.1.conv.2.running_mean",
    "features.17.conv.3.running_var",
    "features.18.0.weight",
    "classifier.1.weight",
  } < names
  names = set(write_as_torch(variables, _timm_mobilenet_module, tmp_path / "c"))
  assert {
    "conv_stem.weight",
    "blocks.0.0.conv_dw.weight",
    "blocks.0.0.conv_pw.weight",
    "blocks.5.2.conv_pwl.weight",
    "blocks.6.0.bn3.running_var",
    "conv_head.weight",
    "classifier.bias",
  } < names


def test_of_a_resnet_the_head_alone_may_differ(tmp_path):
  file = tmp_path / "w.safetensors"
  model = fill_at_random(_resnet18)
  write_as_torch(variables_of(model), _resnet_module, file)
  other = fill_at_random(functools.partial(_resnet18, 7), seed=1)
  with pytest.raises(ValueError, match=r"head/kernel: found \[10, 5\].*fc\."):
    asga_jax.load_weights(other, file, name_map="torchvision")
  loaded = asga_jax.load_weights(
    other, file, name_map="torchvision", skip=("head/.*",)
  )
  np.testing.assert_array_equal(loaded.head.kernel, other.head.kernel)
  np.testing.assert_array_equal(loaded.stem.kernel, model.stem.kernel)


def test_the_wrong_map_is_refused_with_what_it_lacks(tmp_path):
  file = tmp_path / "w.safetensors"
  model = fill_at_random(_mobilenet)
  write_as_torch(variables_of(model), _timm_mobilenet_module, file)
  with pytest.raises(ValueError, match="names without a place") as caught:
    asga_jax.load_weights(model, file, name_map="torchvision")
  message = str(caught.value)
  assert "blocks.0.0.bn1.bias\n" in message
  assert "variables without a value" in message
  # No other map has.
  assert message.count("has a place for every name") == 1
  assert "name_map='timm' has a place for every name" in message
