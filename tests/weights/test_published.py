"""Files in the names of torchvision and timm, made by an inverse of our own.

The numbers of entries are those of `state_dict()` in torchvision 0.28, timm
1.0.31 and the published files (that of ResNet-20 has no counts of batches). The
networks are as deep as published and narrower.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import numpy as safetensors_numpy

import asga_jax
from asga_jax.models import efficientnet_lite, mobilenet_v2, resnet, vgg, vit

NORM = {
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
VGG_POSITIONS = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]


def _random(make, seed=0):
  """Make a network of random values, all different, without initializers."""
  rng = np.random.default_rng(seed)
  graphdef, state = nnx.split(nnx.eval_shape(make))
  filled = jax.tree.map(
    lambda like: jnp.asarray(
      rng.uniform(0.5, 1.5, like.shape) / np.sqrt(like.shape[0] or 1),
      jnp.float32,
    ),
    nnx.as_pure(state),
  )
  return nnx.merge(graphdef, filled)


def _variables(model):
  return {
    "/".join(map(str, keys)): np.asarray(array)
    for keys, array in nnx.to_flat_state(nnx.as_pure(nnx.state(model)))
  }


def _to_torch(module, leaf, value):
  """Give the name and the layout that PyTorch has for a variable."""
  if leaf == "kernel":
    axes = (3, 2, 0, 1) if value.ndim == 4 else (1, 0)
    return f"{module}.weight", value.transpose(axes)
  return f"{module}.{NORM[leaf]}", value


def _write(variables, module_name, path):
  """Write variables under the modules that `module_name` names."""
  arrays = {}
  for name, value in variables.items():
    *parts, leaf = name.split("/")
    module = module_name(*parts)
    key, array = _to_torch(module, leaf, value)
    assert key not in arrays
    arrays[key] = array
    if leaf == "mean":
      arrays[f"{module}.num_batches_tracked"] = np.int64(3)
  _save(arrays, path)
  return arrays


def _save(arrays, path):
  safetensors_numpy.save_file(
    {name: np.ascontiguousarray(array) for name, array in arrays.items()}, path
  )


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
    (_resnet50, _resnet_module, "torchvision", 320),
    (_mobilenet, _torchvision_mobilenet_module, "torchvision", 314),
    (_mobilenet, _timm_mobilenet_module, "timm", 314),
    (_efficientnet, _efficientnet_module, "efficientnet_pytorch", 296),
    (_resnet20, _cifar_module, "resnet_cifar10", 97 + 19),
  ],
)
def test_every_entry_of_a_published_file_finds_its_variable(
  make, module_name, name_map, entries, tmp_path
):
  model = _random(make)
  file = tmp_path / "w.safetensors"
  arrays = _write(_variables(model), module_name, file)
  assert len(arrays) == entries
  loaded = asga_jax.load_weights(nnx.eval_shape(make), file, name_map=name_map)
  found = _variables(loaded)
  for name, array in _variables(model).items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_published_names_word_for_word(tmp_path):
  names = set(
    _write(_variables(_random(_resnet18)), _resnet_module, tmp_path / "a")
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
  variables = _variables(_random(_mobilenet))
  names = set(_write(variables, _torchvision_mobilenet_module, tmp_path / "b"))
  assert {
    "features.0.0.weight",
    "features.1.conv.0.0.weight",
    "features.1.conv.1.weight",
    "features.1.conv.2.running_mean",
    "features.17.conv.3.running_var",
    "features.18.0.weight",
    "classifier.1.weight",
  } < names
  names = set(_write(variables, _timm_mobilenet_module, tmp_path / "c"))
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
  model = _random(_resnet18)
  _write(_variables(model), _resnet_module, file)
  other = _random(functools.partial(_resnet18, 7), seed=1)
  with pytest.raises(ValueError, match=r"head/kernel: found \[10, 5\].*fc\."):
    asga_jax.load_weights(other, file, name_map="torchvision")
  loaded = asga_jax.load_weights(
    other, file, name_map="torchvision", skip=("head/.*",)
  )
  np.testing.assert_array_equal(loaded.head.kernel, other.head.kernel)
  np.testing.assert_array_equal(loaded.stem.kernel, model.stem.kernel)


@pytest.mark.parametrize("name_map", ["torchvision", "timm"])
def test_the_biases_and_the_flattened_map_of_vgg(name_map, tmp_path):
  """Conv + bias, norm, ReLU, pooling; the map is flattened channels first."""
  stages = ((2,) * 2, (3,) * 2, (4,) * 3, (5,) * 3, (5,) * 3)

  def make():
    return vgg.vgg16(3, stem="imagenet", rngs=nnx.Rngs(0))

  with mock.patch.object(vgg, "_STAGES", stages):
    model = _random(make)
    names = {"hidden1": "classifier.0", "hidden2": "classifier.3"}
    names["head"] = "classifier.6"
    if name_map == "timm":
      names = {"hidden1": "pre_logits.fc1", "hidden2": "pre_logits.fc2"}
      names["head"] = "head.fc"

    def module_name(first, *rest):
      if not rest:
        return names[first]
      position = VGG_POSITIONS[int(rest[0])]
      return f"features.{position + (first == 'norms')}"

    variables = _variables(model)
    arrays = _write(variables, module_name, tmp_path / "w.safetensors")
    # What the network computes stays the same with a bias in front of each
    # norm, whose mean is by as much higher.
    rng = np.random.default_rng(3)
    for position in VGG_POSITIONS:
      mean = f"features.{position + 1}.running_mean"
      bias = rng.normal(size=arrays[mean].shape).astype(np.float32)
      arrays[f"features.{position}.bias"] = bias
      arrays[mean] = arrays[mean] + bias
    kernel = variables["hidden1/kernel"].reshape(7, 7, 5, 4096)
    kernel = kernel.transpose(3, 2, 0, 1)
    hidden1 = f"{names['hidden1']}.weight"
    arrays[hidden1] = kernel.reshape(4096, -1)
    if name_map == "timm":
      arrays[hidden1] = kernel
      hidden2 = f"{names['hidden2']}.weight"
      arrays[hidden2] = arrays[hidden2][:, :, None, None]
    assert len(arrays) == 97
    _save(arrays, tmp_path / "w.safetensors")
    loaded = asga_jax.load_weights(
      nnx.eval_shape(make), tmp_path / "w.safetensors", name_map=name_map
    )
  found = _variables(loaded)
  for name, array in variables.items():
    np.testing.assert_allclose(found[name], array, atol=1e-6, err_msg=name)


def _vit():
  return vit.ViT(5, features=8, heads=2, stem="small", rngs=nnx.Rngs(0))


def test_the_fused_projections_and_the_unused_positions_of_a_vit(tmp_path):
  model = _random(_vit)
  arrays = {"pos_embed": np.zeros((1, 65, 8), np.float32)}
  layers = {"out": "attn.proj", "expand": "mlp.fc1", "project": "mlp.fc2"}
  for name, value in _variables(model).items():
    *parts, leaf = name.split("/")
    if name == "token":
      arrays["cls_token"] = value[None, None]
    elif parts[-1] not in ("query", "key", "value"):
      module = ".".join([*parts[:-1], layers.get(parts[-1], parts[-1])])
      module = module.replace("patches", "patch_embed.proj")
      key, array = _to_torch(module, leaf, value)
      arrays[key] = array
  for index, block in enumerate(model.blocks):
    qkv = [block.query, block.key, block.value]
    prefix = f"blocks.{index}.attn.qkv"
    arrays[f"{prefix}.weight"] = np.concatenate(
      [np.asarray(layer.kernel[...]).T for layer in qkv]
    )
    arrays[f"{prefix}.bias"] = np.concatenate(
      [np.asarray(layer.bias[...]) for layer in qkv]
    )
  assert len(arrays) == 152
  assert arrays["blocks.11.mlp.fc2.weight"].shape == (8, 32)
  file = tmp_path / "w.safetensors"
  _save(arrays, file)
  loaded = asga_jax.load_weights(nnx.eval_shape(_vit), file, name_map="timm")
  found = _variables(loaded)
  for name, array in _variables(model).items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)
  # A distilled DeiT has a second token and a second head: no such place here.
  arrays["dist_token"] = arrays["cls_token"]
  _save(arrays, file)
  with pytest.raises(ValueError, match=r"without a place \(1\):\s+dist_token"):
    asga_jax.load_weights(nnx.eval_shape(_vit), file, name_map="timm")


def test_the_wrong_map_is_refused_with_what_it_lacks(tmp_path):
  file = tmp_path / "w.safetensors"
  model = _random(_mobilenet)
  _write(_variables(model), _timm_mobilenet_module, file)
  with pytest.raises(ValueError, match="names without a place") as caught:
    asga_jax.load_weights(model, file, name_map="torchvision")
  message = str(caught.value)
  assert "blocks.0.0.bn1.bias\n" in message
  assert "variables without a value" in message
  # No other map has.
  assert message.count("has a place for every name") == 1
  assert "name_map='timm' has a place for every name" in message
