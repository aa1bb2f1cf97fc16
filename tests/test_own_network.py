"""A network as its user would write it, through search, policy and training.

Nothing here is imported from asga_jax/models.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.quantization import layers


class ConvBlock(nnx.Module):
  def __init__(self, features, rngs):
    self.grouped = nnx.Conv(
      features, features, (3, 3), feature_group_count=4, rngs=rngs
    )
    self.norm = nnx.BatchNorm(features, rngs=rngs)

  def __call__(self, x):
    return x + nnx.relu(self.norm(self.grouped(x)))


class AttentionBlock(nnx.Module):
  def __init__(self, features, rngs):
    self.norm = nnx.LayerNorm(features, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      num_heads=2, in_features=features, decode=False, rngs=rngs
    )

  def __call__(self, x):
    return x + self.attention(self.norm(x))


class OwnNetwork(nnx.Module):
  """8x8x1 images to 3 classes."""

  def __init__(self, rngs, classes=3):
    self.stem = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
    self.blocks = nnx.List([ConvBlock(8, rngs) for _ in range(2)])
    self.shared = nnx.Linear(8, 8, rngs=rngs)
    self.tail = nnx.Dict(attention=AttentionBlock(8, rngs))
    self.scale = nnx.Param(jnp.ones((8, 8)))
    self.head = nnx.Linear(8, classes, rngs=rngs)

  def __call__(self, images):
    x = self.stem(images)
    for block in self.blocks:
      x = block(x)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    x = nnx.relu(self.shared(nnx.relu(self.shared(x))))
    x = self.tail["attention"](x) @ self.scale[...]
    return self.head(x.mean(axis=1))


@pytest.fixture(scope="module")
def network():
  return OwnNetwork(nnx.Rngs(0))


def _state(model):
  return {
    "/".join(map(str, path)): np.asarray(leaf).copy()
    for path, leaf in nnx.to_flat_state(nnx.as_pure(nnx.state(model)))
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  }


@pytest.mark.slow
def test_from_a_network_to_a_trained_policy(network, tiny_batches):
  before = _state(network)
  # What a user writes, from here ...
  model = asga_jax.searchable(network, tiny_batches[0]["image"], bits=(2, 4, 8))
  settings = asga_jax.SearchSettings(steps=6, logit_learning_rate=0.1)
  result = asga_jax.search_policy(
    model, tiny_batches, budget="bops=4bit", settings=settings
  )
  policy = asga_jax.allocate(result, budget="bops=3bit")
  fixed = asga_jax.with_policy(result.model, policy)
  trained = asga_jax.train_policy(
    fixed, tiny_batches, settings=asga_jax.FinetuneSettings(steps=6)
  )
  # ... to here.
  assert set(policy.layers) == {
    "stem",
    "blocks/0/grouped",
    "blocks/1/grouped",
    "shared",
    "tail/attention/attention/query",
    "tail/attention/attention/key",
    "tail/attention/attention/value",
    "tail/attention/attention/out",
    "head",
  }
  # 16 places, called twice; its weights count once.
  assert policy.layers["shared"].macs == 2 * 16 * 8 * 8
  assert policy.layers["shared"].weights == 64
  assert policy.layers["blocks/0/grouped"].macs == 16 * 9 * 8 * 8 // 4
  assert 0.9 < policy.cost["budget_used"] <= 1
  for path, layer in layers.quantized_layers(trained).items():
    bits = (layer.weight.candidates(), layer.activation.candidates())
    found = policy.layers[path]
    assert bits == ((found.weight_bits,), (found.activation_bits,))
  logits = trained(tiny_batches[0]["image"])
  assert logits.shape == (16, 3)
  assert np.isfinite(np.asarray(logits)).all()
  # The network that was handed in is as it was.
  after = _state(network)
  assert before.keys() == after.keys()
  for path, value in before.items():
    np.testing.assert_array_equal(value, after[path])
  with pytest.raises(ValueError, match="not searchable"):
    asga_jax.search_policy(network, tiny_batches, budget="bops=4bit")


def test_what_is_not_searched_is_listed_with_the_reason(network, tiny_batches):
  model = asga_jax.searchable(network, tiny_batches[0]["image"])
  found = asga_jax.not_searched(model)
  products = [path for path in found if "attention_fn" in path]
  assert len(products) == 2
  assert set(found) == {"(the network itself)", *products}
  assert "its own code multiplies" in found["(the network itself)"]


@pytest.mark.slow
def test_the_float_state_loads_into_the_searchable_network_and_back(
  network, tiny_batches
):
  images = tiny_batches[0]["image"]
  rules = [asga_jax.Rule(".*", weight_bits=32, activation_bits=32)]
  model = asga_jax.searchable(OwnNetwork(nnx.Rngs(1)), images, rules=rules)
  floats = nnx.Any(nnx.Param, nnx.BatchStat)
  nnx.update(model, nnx.state(network, floats))
  model.eval()
  reference = nnx.clone(network)
  reference.eval()
  np.testing.assert_allclose(model(images), reference(images), atol=1e-6)
  back = OwnNetwork(nnx.Rngs(2))
  nnx.update(back, nnx.state(model, floats))
  back.eval()
  np.testing.assert_array_equal(back(images), reference(images))


def test_a_deployed_head_of_another_size_changes_costs_alone(
  network, tiny_batches
):
  deployed = nnx.eval_shape(lambda: OwnNetwork(nnx.Rngs(0), classes=10))
  model = asga_jax.searchable(
    network, tiny_batches[0]["image"], deployed=(deployed, (16, 16, 1))
  )
  search = asga_jax.start_search(model, budget="bops=4bit")
  by_path = {layer.path: layer for layer in search.space.network.layers}
  assert by_path["head"].macs == 8 * 10
  assert by_path["stem"].macs == 64 * 9 * 8


@pytest.mark.slow
def test_forward_is_jittable_and_batch_of_one(network, tiny_batches):
  model = asga_jax.searchable(network, tiny_batches[0]["image"][:1])
  model.eval()
  run = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
  graphdef, state = nnx.split(model)
  assert run(state, tiny_batches[0]["image"][:1]).shape == (1, 3)
