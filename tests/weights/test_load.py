"""Weights from files into networks: round trips, other heads, other types."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax import checkpoint as ocp
from safetensors import numpy as safetensors_numpy
from weights.arrays import as_trained, assert_same, variables_of, write_arrays

import asga_jax
from asga_jax import models
from asga_jax.quantization import layers
from asga_jax.runs import build, checkpoints
from asga_jax.runs import config as config_lib
from asga_jax.weights import files as weight_files


def test_saved_weights_load_without_a_map(
  trained, fresh, tiny_batches, tmp_path
):
  asga_jax.save_weights(trained, tmp_path / "w.safetensors")
  on_disk = safetensors_numpy.load_file(tmp_path / "w.safetensors")
  assert_same(on_disk, variables_of(trained))
  assert {"first/kernel", "norm/mean", "norm/var", "head/bias"} < set(on_disk)
  before = variables_of(fresh)
  loaded = asga_jax.load_weights(fresh, tmp_path / "w.safetensors")
  assert_same(variables_of(loaded), variables_of(trained))
  assert_same(variables_of(fresh), before)
  images = tiny_batches[0]["image"]
  loaded.eval()
  trained.eval()
  np.testing.assert_array_equal(loaded(images), trained(images))
  # The copy shares nothing with the network that was handed in.
  loaded.head.bias[...] += 1
  assert_same(variables_of(fresh), before)


def test_arrays_that_are_not_contiguous_are_written_in_order(tmp_path):
  array = np.arange(12, dtype=np.float32).reshape(4, 3).T
  weight_files.write(tmp_path / "w.safetensors", {"a": array})
  found = weight_files.read(tmp_path / "w.safetensors")["a"]
  np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
  "make_tree",
  [
    lambda model: nnx.to_pure_dict(nnx.state(model)),
    lambda model: nnx.as_pure(nnx.state(model)),
    nnx.state,
  ],
  ids=["pure_dict", "pure_state", "state"],
)
def test_an_orbax_checkpoint_of_a_state_loads(
  make_tree, trained, fresh, tmp_path
):
  with ocp.StandardCheckpointer() as writer:
    writer.save(tmp_path / "saved", make_tree(trained))
  loaded = asga_jax.load_weights(fresh, tmp_path / "saved")
  assert_same(variables_of(loaded), variables_of(trained))


def test_a_step_of_a_checkpoint_manager_loads(trained, fresh, tmp_path):
  tree = {"model": nnx.to_pure_dict(nnx.state(trained)), "step": np.int32(3)}
  with ocp.CheckpointManager(tmp_path) as manager:
    manager.save(3, args=ocp.args.StandardSave(tree))
  loaded = asga_jax.load_weights(
    fresh,
    tmp_path / "3",
    name_map={
      "rules": [{"pattern": "model/(.*)", "path": r"\1"}],
      "ignored": ["step"],
    },
  )
  assert_same(variables_of(loaded), variables_of(trained))
  with pytest.raises(ValueError, match="of one step"):
    asga_jax.load_weights(fresh, tmp_path)


def test_a_list_of_blocks_survives_orbax(tmp_path):
  def make(seed):
    rngs = nnx.Rngs(seed)
    return nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(11)])

  with ocp.StandardCheckpointer() as writer:
    writer.save(tmp_path / "saved", nnx.to_pure_dict(nnx.state(make(0))))
  # Every variable is filled, so that a network without arrays will do.
  abstract = nnx.eval_shape(lambda: make(1))
  loaded = asga_jax.load_weights(abstract, tmp_path / "saved")
  assert_same(variables_of(loaded), variables_of(make(0)))


def test_our_own_checkpoint_gives_the_weights_of_the_search(
  tiny_search, tiny_network_class, tmp_path
):
  with checkpoints.Checkpoints(tmp_path) as kept:
    kept.save(4, tiny_search.state)
  params = tiny_search.state.params
  fresh = tiny_network_class(rngs=nnx.Rngs(8))
  loaded = asga_jax.load_weights(fresh, tmp_path / "4", name_map="train_state")
  wanted = {
    "/".join(map(str, keys)): np.asarray(array)
    for state in (params.weights, tiny_search.state.rest)
    for keys, array in nnx.to_flat_state(state)
  }
  found = variables_of(loaded)
  assert set(found) == set(variables_of(fresh))
  for name, array in found.items():
    np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_values_take_the_dtype_of_their_variable(
  dtype, trained, fresh, tmp_path
):
  stored = {name: a.astype(dtype) for name, a in variables_of(trained).items()}
  path = write_arrays(tmp_path / "w.safetensors", stored)
  loaded = variables_of(asga_jax.load_weights(fresh, path))
  for name, array in stored.items():
    assert loaded[name].dtype == np.float32
    np.testing.assert_array_equal(loaded[name], array.astype(np.float32))


def test_a_head_of_other_classes_is_left_out_by_name(
  trained, tiny_network_class, tmp_path
):
  path = tmp_path / "w.safetensors"
  asga_jax.save_weights(trained, path)
  other = tiny_network_class(10, rngs=nnx.Rngs(8))
  with pytest.raises(weight_files.WeightsError) as caught:
    asga_jax.load_weights(other, path)
  message = str(caught.value)
  assert "arrays that do not fit (2)" in message
  assert "head/kernel: found [5, 3], expected [5, 10]" in message
  loaded = asga_jax.load_weights(other, path, skip=["head/.*"])
  wanted = {
    name: variables_of(other if name.startswith("head") else trained)[name]
    for name in variables_of(other)
  }
  assert_same(variables_of(loaded), wanted)
  # Nor need the file have it.
  arrays = variables_of(trained)
  for name in ("head/kernel", "head/bias"):
    del arrays[name]
  write_arrays(path, arrays)
  again = asga_jax.load_weights(other, path, skip=["head/.*"])
  assert_same(variables_of(again), wanted)


@pytest.fixture
def weights_config(tiny_network_class, tmp_path):
  """A search of a tiny network from trained weights of another head."""

  def tiny(num_classes, *, stem, rngs, conv_general_dilated=None):
    del stem, conv_general_dilated
    return tiny_network_class(num_classes, 3, rngs=rngs)

  config = config_lib.default_config()
  config.model = "tiny"
  config.deployed.image_size = 8
  config.weights.path = str(tmp_path / "w.safetensors")
  config.weights.skip = ("head/.*",)
  network = as_trained(tiny_network_class(3, 3, rngs=nnx.Rngs(0)))
  asga_jax.save_weights(network, config.weights.path)
  known = {**models.CONSTRUCTORS, "tiny": tiny}
  with mock.patch.object(models, "CONSTRUCTORS", known):
    yield config


def test_a_search_starts_from_the_weights_of_its_configuration(weights_config):
  config_lib.check_search_config(weights_config)
  images = np.ones((2, 8, 8, 3), np.float32)
  model = build.make_searchable(weights_config, 10, images)
  wanted = safetensors_numpy.load_file(weights_config.weights.path)
  found = layers.quantized_layers(model)
  assert set(found) == {"first", "middle", "inner", "head"}
  for path in ("first", "middle", "inner"):
    kernel = getattr(model, path).kernel[...]
    np.testing.assert_array_equal(kernel, wanted[f"{path}/kernel"])
  np.testing.assert_array_equal(model.norm.mean[...], wanted["norm/mean"])
  assert model.head.kernel.shape == (5, 10)
  # Without them it starts from its own, as do a run that goes on and a result
  # that is restored.
  untrained = build.make_searchable(weights_config, 10, images, trained=False)
  assert not np.array_equal(untrained.first.kernel[...], wanted["first/kernel"])


def test_a_map_or_a_skip_without_a_file_is_an_error(weights_config):
  weights_config.weights.path = ""
  with pytest.raises(ValueError, match=r"config\.weights\.path is empty"):
    config_lib.check_search_config(weights_config)


def test_keys_of_random_numbers_are_not_written(tmp_path):
  class Keyed(nnx.Module):
    def __init__(self):
      self.layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
      self.key = nnx.Variable(jax.random.key(0))

  path = tmp_path / "w.safetensors"
  asga_jax.save_weights(Keyed(), path)
  names = safetensors_numpy.load_file(path)
  assert set(names) == {"layer/kernel", "layer/bias"}
