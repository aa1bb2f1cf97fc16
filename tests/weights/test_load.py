"""Weights from files into networks: round trips, layouts, every error."""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax import checkpoint as ocp
from safetensors import numpy as safetensors_numpy

import asga_jax
from asga_jax import models
from asga_jax.quantization import layers
from asga_jax.runs import build, checkpoints
from asga_jax.runs import config as config_lib
from asga_jax.weights import files as weight_files


def _variables(model):
  state = nnx.as_pure(nnx.state(model, nnx.Not(nnx.RngState)))
  return {
    "/".join(map(str, keys)): np.asarray(array)
    for keys, array in nnx.to_flat_state(state)
  }


def _assert_same(found, wanted):
  assert found.keys() == wanted.keys()
  for name, array in wanted.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def _trained(model):
  """Give every variable another value than its initial one."""
  rng = np.random.default_rng(7)
  graphdef, state = nnx.split(model)
  changed = jax.tree.map(
    lambda a: jnp.asarray(rng.uniform(0.5, 1.5, a.shape), a.dtype),
    nnx.as_pure(state),
  )
  return nnx.merge(graphdef, changed)


@pytest.fixture
def trained(tiny_network_class):
  return _trained(tiny_network_class(rngs=nnx.Rngs(7)))


@pytest.fixture
def fresh(tiny_network_class):
  return tiny_network_class(rngs=nnx.Rngs(8))


def _write(path, arrays):
  safetensors_numpy.save_file(
    {name: np.ascontiguousarray(array) for name, array in arrays.items()}, path
  )
  return path


def test_saved_weights_load_without_a_map(
  trained, fresh, tiny_batches, tmp_path
):
  asga_jax.save_weights(trained, tmp_path / "w.safetensors")
  on_disk = safetensors_numpy.load_file(tmp_path / "w.safetensors")
  _assert_same(on_disk, _variables(trained))
  assert {"first/kernel", "norm/mean", "norm/var", "head/bias"} < set(on_disk)
  before = _variables(fresh)
  loaded = asga_jax.load_weights(fresh, tmp_path / "w.safetensors")
  _assert_same(_variables(loaded), _variables(trained))
  _assert_same(_variables(fresh), before)
  images = tiny_batches[0]["image"]
  loaded.eval()
  trained.eval()
  np.testing.assert_array_equal(loaded(images), trained(images))
  # The copy shares nothing with the network that was handed in.
  loaded.head.bias[...] += 1
  _assert_same(_variables(fresh), before)


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
  _assert_same(_variables(loaded), _variables(trained))


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
  _assert_same(_variables(loaded), _variables(trained))
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
  _assert_same(_variables(loaded), _variables(make(0)))


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
  found = _variables(loaded)
  assert set(found) == set(_variables(fresh))
  for name, array in found.items():
    np.testing.assert_array_equal(array, wanted[name], err_msg=name)


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
  return arrays, _write(tmp_path / "small.safetensors", arrays)


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


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_values_take_the_dtype_of_their_variable(
  dtype, trained, fresh, tmp_path
):
  stored = {name: a.astype(dtype) for name, a in _variables(trained).items()}
  path = _write(tmp_path / "w.safetensors", stored)
  loaded = _variables(asga_jax.load_weights(fresh, path))
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
    name: _variables(other if name.startswith("head") else trained)[name]
    for name in _variables(other)
  }
  _assert_same(_variables(loaded), wanted)
  # Nor need the file have it.
  arrays = _variables(trained)
  for name in ("head/kernel", "head/bias"):
    del arrays[name]
  _write(path, arrays)
  again = asga_jax.load_weights(other, path, skip=["head/.*"])
  _assert_same(_variables(again), wanted)


@pytest.mark.parametrize(
  ("skip", "named"),
  [
    (["hed/.*"], r"skip='hed/\.\*' matches no variable; .*first/bias"),
    (["head"], "skip='head' matches no variable"),
    (["head/("], r"skip='head/\(' is not a regular expression"),
    ("head/.*", "is a string"),
    ([3], "skip=3 is not"),
  ],
)
def test_a_bad_skip_is_an_error(skip, named, trained, tmp_path):
  asga_jax.save_weights(trained, tmp_path / "w.safetensors")
  with pytest.raises(ValueError, match=named):
    asga_jax.load_weights(trained, tmp_path / "w.safetensors", skip=skip)


def test_all_that_does_not_fit_is_told_at_once(trained, tmp_path):
  arrays = _variables(trained)
  arrays["first/kernal"] = arrays.pop("first/kernel")
  arrays["middle/kernel"] = arrays["middle/kernel"].transpose(3, 2, 0, 1)
  arrays["inner/bias"] = np.full(5, np.nan, np.float32)
  arrays["norm/mean"] = np.zeros(4, np.int32)
  path = _write(tmp_path / "w.safetensors", arrays)
  with pytest.raises(weight_files.WeightsError) as caught:
    asga_jax.load_weights(trained, path)
  message = str(caught.value)
  for line in (
    "name_map=None, skip=[]",
    "names without a place (1):\n    first/kernal\n",
    "variables without a value (1):\n    first/kernel",
    "arrays that do not fit (3)",
    "middle/kernel: found [6, 4, 3, 3], expected [3, 3, 4, 6]",
    "inner/bias: holds values that are not finite",
    "norm/mean: found int32, expected float32",
  ):
    assert line in message


def test_of_many_names_the_first_few_are_told(trained, tmp_path):
  arrays = {f"more.{i}": np.zeros(1, np.float32) for i in range(10, 18)}
  path = _write(tmp_path / "w.safetensors", {**_variables(trained), **arrays})
  with pytest.raises(weight_files.WeightsError) as caught:
    asga_jax.load_weights(trained, path)
  message = str(caught.value)
  assert "names without a place (8)" in message
  assert "more.14" in message
  assert "more.15" not in message
  assert "and 3 more" in message


@pytest.mark.parametrize(
  ("rules", "named"),
  [
    (
      [{"pattern": "(first|middle)/bias", "path": "first/bias"}],
      "names for the same variable (1):\n    first/bias, middle/bias",
    ),
    (
      [{"pattern": "first/bias", "path": "second/bias"}],
      "first/bias (for second/bias)",
    ),
    (
      [{"pattern": "first/bias", "path": ["first/bias"] * 3}],
      "first/bias: [4] cannot be cut into 3 equal parts",
    ),
    (
      [{"pattern": "first/bias", "path": "first/bias", "layout": "a b -> b a"}],
      "first/bias: [4] does not fit the layout 'a b -> b a'",
    ),
    (
      [{"pattern": "first/bias", "path": "norm/bias", "subtract": True}],
      "variables without a value (1):\n    first/bias",
    ),
    (
      [{"pattern": "middle/bias", "path": "first/bias", "subtract": True}],
      "middle/bias: found [6], expected [4] as in first/bias",
    ),
  ],
)
def test_a_map_that_does_not_fit_the_file(rules, named, trained, tmp_path):
  asga_jax.save_weights(trained, tmp_path / "w.safetensors")
  rules = [*rules, {"pattern": "(.*)", "path": r"\1"}]
  with pytest.raises(weight_files.WeightsError) as caught:
    asga_jax.load_weights(
      trained, tmp_path / "w.safetensors", name_map={"rules": rules}
    )
  assert named in str(caught.value)


def test_an_unknown_map_is_told_with_the_known_ones(trained, tmp_path):
  asga_jax.save_weights(trained, tmp_path / "w.safetensors")
  with pytest.raises(
    ValueError, match=r"'torchvison' is neither .*torchvision, timm, .*train"
  ):
    asga_jax.load_weights(
      trained, tmp_path / "w.safetensors", name_map="torchvison"
    )


def test_files_that_cannot_be_read(trained, tmp_path):
  def load(name):
    return asga_jax.load_weights(trained, tmp_path / name)

  with pytest.raises(ValueError, match=r"none\.safetensors do not exist"):
    load("none.safetensors")
  (tmp_path / "w.pth").write_bytes(b"PK")
  with pytest.raises(ValueError, match=r"w\.pth is neither .*save_file"):
    load("w.pth")
  (tmp_path / "w.safetensors").write_bytes(b"not one of them")
  with pytest.raises(ValueError, match=r"w\.safetensors cannot be read"):
    load("w.safetensors")
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="holds no checkpoint of Orbax"):
    load("empty")
  with ocp.StandardCheckpointer() as writer:
    writer.save(tmp_path / "saved", {"a": np.zeros(3)})
  for file in (tmp_path / "saved").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(ValueError, match="saved cannot be read"):
    load("saved")


def test_weights_are_written_to_files_of_the_right_suffix(trained, tmp_path):
  with pytest.raises(ValueError, match=r"not to .*w\.npz"):
    asga_jax.save_weights(trained, tmp_path / "w.npz")
  with pytest.raises(FileNotFoundError):
    asga_jax.save_weights(trained, tmp_path / "nowhere" / "w.safetensors")
  assert list(tmp_path.iterdir()) == []


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
  network = _trained(tiny_network_class(3, 3, rngs=nnx.Rngs(0)))
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
