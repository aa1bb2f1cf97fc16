"""Published files of VGG and ViT: flattened maps, fused layers, and biases."""

from unittest import mock

import numpy as np
import pytest
from flax import nnx
from weights.arrays import variables_of, write_arrays
from weights.torch_files import fill_at_random, to_torch, write_as_torch

import asga_jax
from asga_jax.models import vgg, vit

VGG_POSITIONS = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]


@pytest.mark.parametrize(
  "name_map", [pytest.param("torchvision", marks=pytest.mark.slow), "timm"]
)
def test_the_biases_and_the_flattened_map_of_vgg(name_map, tmp_path):
  """Conv + bias, norm, ReLU, pooling; the map is flattened channels first."""
  stages = ((2,) * 2, (3,) * 2, (4,) * 3, (5,) * 3, (5,) * 3)

  def make():
    return vgg.vgg16(3, stem="imagenet", rngs=nnx.Rngs(0))

  with mock.patch.object(vgg, "_STAGES", stages):
    model = fill_at_random(make)
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

    variables = variables_of(model)
    arrays = write_as_torch(variables, module_name, tmp_path / "w.safetensors")
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
    write_arrays(tmp_path / "w.safetensors", arrays)
    loaded = asga_jax.load_weights(
      nnx.eval_shape(make), tmp_path / "w.safetensors", name_map=name_map
    )
  found = variables_of(loaded)
  for name, array in variables.items():
    np.testing.assert_allclose(found[name], array, atol=1e-6, err_msg=name)


def _vit():
  return vit.ViT(5, features=8, heads=2, stem="small", rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_the_fused_projections_and_the_unused_positions_of_a_vit(tmp_path):
  model = fill_at_random(_vit)
  arrays = {"pos_embed": np.zeros((1, 65, 8), np.float32)}
  layers = {"out": "attn.proj", "expand": "mlp.fc1", "project": "mlp.fc2"}
  for name, value in variables_of(model).items():
    *parts, leaf = name.split("/")
    if name == "token":
      arrays["cls_token"] = value[None, None]
    elif parts[-1] not in ("query", "key", "value"):
      module = ".".join([*parts[:-1], layers.get(parts[-1], parts[-1])])
      module = module.replace("patches", "patch_embed.proj")
      key, array = to_torch(module, leaf, value)
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
  write_arrays(file, arrays)
  loaded = asga_jax.load_weights(nnx.eval_shape(_vit), file, name_map="timm")
  found = variables_of(loaded)
  for name, array in variables_of(model).items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)
  # A distilled DeiT has a second token and a second head: no such place here.
  arrays["dist_token"] = arrays["cls_token"]
  write_arrays(file, arrays)
  with pytest.raises(ValueError, match=r"without a place \(1\):\s+dist_token"):
    asga_jax.load_weights(nnx.eval_shape(_vit), file, name_map="timm")
