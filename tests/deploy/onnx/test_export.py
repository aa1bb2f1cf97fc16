"""Whole networks in onnxruntime, against the fake-quantized ones in JAX."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx

import asga_jax
from asga_jax import models, result
from asga_jax.allocation import space as search_space
from asga_jax.cost import costs as costs_lib
from asga_jax.deploy.onnx import export as onnx_export
from asga_jax.deploy.onnx.values import ExportError
from asga_jax.quantization import layers

# (weight bits, activation bits), given to the layers in turn.
MIXED = (
  (2, 8),
  (3, 4),
  (4, 2),
  (5, 6),
  (6, 3),
  (8, 5),
  (32, 4),
  (4, 32),
  (8, 8),
)
BITS = (2, 3, 4, 5, 6, 8, 32)


class OwnNetwork(nnx.Module):
  """As a user writes it: grouped, shared, listed, attending; 8x8x3 images."""

  def __init__(self, rngs):
    self.stem = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
    self.blocks = nnx.List(
      [
        nnx.Conv(8, 8, (3, 3), feature_group_count=4, rngs=rngs)
        for _ in range(2)
      ]
    )
    self.norms = nnx.List([nnx.BatchNorm(8, rngs=rngs) for _ in range(2)])
    self.shared = nnx.Linear(8, 8, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      num_heads=2, in_features=8, decode=False, rngs=rngs
    )
    self.up = nnx.ConvTranspose(8, 6, (3,), strides=(2,), rngs=rngs)
    self.head = nnx.Linear(6, 3, rngs=rngs)

  def __call__(self, images):
    x = nnx.relu6(self.stem(images))
    for block, norm in zip(self.blocks, self.norms, strict=True):
      x = x + nnx.relu(norm(block(x)))
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    x = nnx.gelu(self.shared(nnx.relu(self.shared(x))))
    x = self.up(x + self.attention(x))
    return self.head(x.mean(axis=1))


def _network(name, **settings):
  return models.constructor(name)(
    10, stem="small", rngs=nnx.Rngs(0), **settings
  )


NETWORKS = {
  "own": (lambda: OwnNetwork(nnx.Rngs(0)), 8),
  "resnet8": (lambda: _network("resnet8"), 16),
  "resnet20": (lambda: _network("resnet20"), 16),
  "resnet18": (lambda: _network("resnet18"), 16),
  "mobilenet_v2": (lambda: _network("mobilenet_v2", width=0.25), 16),
  "vgg16": (lambda: _network("vgg16"), 32),
  "vit_ti": (lambda: _network("vit_ti", depth=2), 16),
}
SLOW = {"resnet8", "resnet20", "resnet18", "mobilenet_v2", "vgg16", "vit_ti"}


def _with_statistics(model):
  """Give batch norms other statistics than those of the start, and signs."""
  random = np.random.default_rng(0)
  for _, module in nnx.iter_modules(model):
    if isinstance(module, nnx.BatchNorm):
      shape = module.mean.shape
      signs = random.choice([-1, 1, 1, 1], shape)
      module.mean[...] = jnp.asarray(random.normal(0, 0.2, shape))
      module.var[...] = jnp.asarray(random.uniform(0.5, 2, shape))
      module.scale[...] = jnp.asarray(random.uniform(0.5, 1.5, shape) * signs)
      module.bias[...] = jnp.asarray(random.normal(0, 0.3, shape))
  return model


def _images(size, count=32):
  random = np.random.default_rng(1)
  return random.standard_normal((count, size, size, 3), np.float32)


def _searchable(name, **settings):
  make, size = NETWORKS[name]
  images = _images(size)
  model = _with_statistics(make())
  return asga_jax.searchable(model, images, bits=BITS, **settings), images


def _mixed_policy(model, shape):
  """Make a policy that has every bit-width."""
  space = search_space.build(model, model.deployed_network[0])
  bits, turn = {}, 0
  for path, layer in layers.quantized_layers(model).items():
    candidates = [layer.weight.candidates(), layer.activation.candidates()]
    if all(len(each) > 1 for each in candidates):
      bits[path] = MIXED[turn % len(MIXED)]
      turn += 1
    else:
      bits[path] = tuple(each[0] for each in candidates)
  return result.make_policy(
    space,
    bits,
    {"bops": 10**12},
    budget="none",
    model_name="network",
    input_shape=shape,
    provenance={},
  )


def _in_jax(model, images):
  copy = nnx.clone(model)
  copy.eval()
  return np.asarray(nnx.jit(lambda m, x: m(x))(copy, images))


def _in_onnxruntime(made, images):
  session = onnxruntime.InferenceSession(made.SerializeToString())
  return session.run(None, {"image": images})[0]


@pytest.fixture(scope="module")
def own():
  model, images = _searchable("own")
  policy = _mixed_policy(model, images.shape[1:])
  return model, policy, images


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in NETWORKS
  ],
)
def test_it_computes_what_the_network_computes(name):
  make, size = NETWORKS[name]
  float_model = _with_statistics(make())
  images = _images(size)
  want = _in_jax(float_model, images)
  made = onnx_export.export_onnx(float_model, images.shape[1:])
  for batch in (1, 3, 32):
    np.testing.assert_allclose(
      _in_onnxruntime(made, images[:batch]),
      want[:batch],
      rtol=0,
      atol=1e-5 * np.abs(want).max(),
    )
  model, _ = _searchable(name)
  policy = _mixed_policy(model, images.shape[1:])
  want = _in_jax(asga_jax.with_policy(model, policy), images)
  made = onnx_export.export_onnx(model, images.shape[1:], policy=policy)
  got = _in_onnxruntime(made, images)
  # A value that lies on the border of two codes may fall on either side, and
  # a network of random weights carries that on: nearly all, not all, agree.
  error = np.abs(got - want).max(axis=1)
  assert np.median(error) < 0.05 * want.std()
  first, second = np.sort(want, axis=1)[:, -2:].T
  clear = first - second > 2 * error
  assert (got.argmax(1) == want.argmax(1))[clear].all()


def test_it_agrees_to_float_rounding(own):
  model, policy, images = own
  want = _in_jax(asga_jax.with_policy(model, policy), images)
  made = onnx_export.export_onnx(model, images.shape[1:], policy=policy)
  error = np.abs(_in_onnxruntime(made, images) - want).max(axis=1)
  assert np.quantile(error, 0.8) < 1e-5


def test_weights_are_stored_in_their_true_types(own):
  model, policy, images = own
  made = onnx_export.export_onnx(model, images.shape[1:], policy=policy)
  entry = onnx.TensorProto
  width = {entry.INT2: 2, entry.INT4: 4, entry.INT8: 8}
  stored = {}
  for tensor in made.graph.initializer:
    if tensor.data_type in width and len(tensor.dims) > 1:
      stored.setdefault(tensor.name.rsplit("/", 1)[0], []).append(tensor)
  for path, layer in policy.layers.items():
    if layer.weight_bits == 32:
      assert path not in stored
      continue
    (tensor,) = stored[path]
    wanted = next(w for w in (2, 4, 8) if w >= layer.weight_bits)
    assert width[tensor.data_type] == wanted
    assert len(tensor.raw_data) == -(-layer.weights * wanted // 8)
    codes = onnx.numpy_helper.to_array(tensor).astype(int)
    assert np.abs(codes).max() <= 2 ** (layer.weight_bits - 1) - 1


@pytest.mark.slow
def test_bytes_are_what_containers_promise():
  model, images = _searchable("resnet8")
  policy = _mixed_policy(model, images.shape[1:])
  made = onnx_export.export_onnx(model, images.shape[1:], policy=policy)
  promised = policy.cost["container_size_bytes"]
  assert onnx_export.weight_bytes(made) == pytest.approx(promised, rel=0.05)
  assert made.ByteSize() < 1.2 * promised


def test_metadata_and_names(own):
  model, policy, images = own
  made = onnx_export.export_onnx(
    model, images.shape[1:], policy=policy, name="mine"
  )
  metadata = {p.key: p.value for p in made.metadata_props}
  text = metadata[onnx_export.POLICY_KEY]
  assert asga_jax.policy.from_json(text) == policy
  storage = json.loads(metadata[onnx_export.STORAGE_KEY])
  assert set(storage) == set(policy.layers)
  assert [i.name for i in made.graph.input] == ["image"]
  assert [o.name for o in made.graph.output] == ["logits"]
  assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
  assert made.graph.name == "mine"
  table = onnx_export.format_storage(made)
  assert "3 bits in int4" in table
  assert "5 bits in int8" in table
  assert "2 bits in uint8" in table
  assert "float32" in table


@pytest.mark.slow
@pytest.mark.parametrize(
  "quantizer",
  [
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("pact", "hwgq")),
    "dorefa",
  ],
)
def test_other_quantizers(quantizer, tiny_network, tiny_batches):
  images = tiny_batches[0]["image"]
  model = asga_jax.searchable(
    tiny_network,
    images,
    weight_quantizer=quantizer,
    activation_quantizer=quantizer,
    per_channel=False,
    bits=(3, 4),
  )
  policy = _uniform(model, 3)
  want = _in_jax(asga_jax.with_policy(model, policy), images)
  made = onnx_export.export_onnx(model, images.shape[1:], policy=policy)
  error = np.abs(_in_onnxruntime(made, images) - want).max(axis=1)
  assert np.median(error) < 1e-3 * want.std()


def _uniform(model, bits):
  space = search_space.build(model, model.deployed_network[0])
  return result.make_policy(
    space,
    costs_lib.uniform_bits(space.network, space.choices, bits),
    {"bops": 10**12},
    budget="none",
    model_name="network",
    input_shape=(8, 8, 1),
    provenance={},
  )


@pytest.mark.slow
def test_products_of_attention():
  network = models.vit.ViT(
    5, features=8, heads=2, depth=1, patch=4, rngs=nnx.Rngs(0)
  )
  images = _images(8)
  rules = [asga_jax.Rule(".*/(qk|pv)", 4, 6, products=True)]
  model = asga_jax.searchable(network, images, bits=(8,), rules=rules)
  assert len(layers.quantized_layers(model)) == 10
  want = _in_jax(model, images)
  made = onnx_export.export_onnx(model, images.shape[1:])
  error = np.abs(_in_onnxruntime(made, images) - want).max(axis=1)
  assert np.median(error) < 0.02 * want.std()


def test_several_candidates_need_a_policy(own, tmp_path):
  model, policy, images = own
  with pytest.raises(ExportError, match="has the candidates"):
    onnx_export.export_onnx(model, images.shape[1:], tmp_path / "a.onnx")
  short = dict(policy.layers)
  short.pop("shared")
  other = type(policy)(**{**vars(policy), "layers": short})
  with pytest.raises(ValueError, match="shared"):
    onnx_export.export_onnx(
      model, images.shape[1:], tmp_path / "a.onnx", policy=other
    )
  assert os.listdir(tmp_path) == []


def test_the_file_and_the_network(own, tmp_path):
  model, policy, images = own
  before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
  file = tmp_path / "network.onnx"
  made = onnx_export.export_onnx(model, images.shape[1:], file, policy=policy)
  assert onnx.load(file) == made
  assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]
  after = nnx.to_pure_dict(nnx.state(model))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert isinstance(model.stem.conv_general_dilated, layers.QuantizedProduct)
