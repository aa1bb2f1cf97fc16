import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax import models
from asga_jax.cost import macs
from asga_jax.network import attention, examples
from asga_jax.quantization import layers, rules

QUERY = jax.random.normal(jax.random.key(0), (2, 5, 4, 8))
KEY, VALUE = jax.random.normal(jax.random.key(1), (2, 2, 7, 4, 8))
X = jax.random.normal(jax.random.key(3), (2, 6, 12))
PRODUCTS = ("attention_fn/qk", "attention_fn/pv")
VIT_S = pytest.param("vit_s", 4598.9e6, marks=pytest.mark.slow)


class Net(nnx.Module):
  """Attention by Flax's module and by hand, between linear layers."""

  def __init__(self, rngs):
    self.first = nnx.Linear(12, 12, rngs=rngs)
    self.flax = nnx.MultiHeadAttention(2, 12, decode=False, rngs=rngs)
    self.hand = Hand(rngs)
    self.last = nnx.Linear(12, 3, rngs=rngs)

  def __call__(self, x):
    return self.last(self.hand(self.flax(self.first(x))).mean(axis=1))


class Hand(nnx.Module):
  def __init__(self, rngs):
    self.qkv = nnx.List([nnx.Linear(12, 12, rngs=rngs) for _ in range(3)])
    self.attention_fn = nnx.dot_product_attention

  def __call__(self, x):
    q, k, v = (layer(x).reshape(*x.shape[:2], 3, 4) for layer in self.qkv)
    return self.attention_fn(q, k, v, is_causal=True).reshape(x.shape)


@pytest.fixture
def net():
  return Net(nnx.Rngs(0))


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"bias": jax.random.normal(jax.random.key(4), (2, 4, 5, 7))},
    {"mask": jax.random.bernoulli(jax.random.key(5), 0.7, (2, 4, 5, 7))},
    {"is_causal": True},
    {"precision": jax.lax.Precision.HIGHEST, "deterministic": True},
    {"dropout_rate": 0.3, "dropout_rng": jax.random.key(6)},
    {
      "dropout_rate": 0.3,
      "dropout_rng": jax.random.key(6),
      "broadcast_dropout": False,
    },
  ],
)
@pytest.mark.parametrize("heads", [4, 2, 1])
def test_float_attention_is_flaxs(settings, heads):
  key, value = KEY[:, :, :heads], VALUE[:, :, :heads]
  expected = nnx.dot_product_attention(QUERY, key, value, **settings)
  found = attention.Attention()(QUERY, key, value, **settings)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_attention_takes_more_batch_axes_and_another_dtype():
  shapes = [x.reshape(1, 2, *x.shape[1:]) for x in (QUERY, KEY, VALUE)]
  expected = nnx.dot_product_attention(*shapes, dtype=jnp.bfloat16)
  found = attention.Attention()(*shapes, dtype=jnp.bfloat16)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    found.astype(np.float32), expected.astype(np.float32), atol=0.03
  )


@pytest.mark.slow
def test_exposed_network_computes_the_same(net):
  exposed = attention.expose_products(nnx.clone(net))
  np.testing.assert_allclose(exposed(X), net(X), atol=1e-6)
  assert jax.tree.structure(nnx.state(exposed)) == jax.tree.structure(
    nnx.state(net)
  )


@pytest.mark.parametrize(("model", "expected"), [("vit_ti", 1253.7e6), VIT_S])
def test_macs_of_vision_transformers(model, expected):
  """Against the published figures with the products of attention."""
  network = nnx.eval_shape(lambda: models.constructor(model)(rngs=nnx.Rngs(0)))
  products = [
    f"blocks/{i}/{product}" for i in range(12) for product in PRODUCTS
  ]
  stats = macs.network_stats(network, (224, 224, 3), products=products)
  assert sum(x.macs for x in stats.layers) == pytest.approx(expected, rel=5e-4)
  counted = {x.path: x for x in stats.layers}
  # 12 blocks of 197 x 197 scores in each head, over all features.
  features = {"vit_ti": 192, "vit_s": 384}[model]
  assert {counted[path].macs for path in products} == {197 * 197 * features}
  assert {counted[path].weights for path in products} == {0}
  assert stats.paths[0] == "patches"
  assert stats.paths[-1] == "head"


@pytest.mark.parametrize("heads", [4, 2])
def test_macs_with_other_key_length_and_heads(heads):
  class Attending(nnx.Module):
    def __init__(self):
      self.linear = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
      self.attention_fn = nnx.dot_product_attention

    def __call__(self, query, key, value):
      return self.attention_fn(self.linear(query), key, value)

  given = QUERY[:1], KEY[:1, :, :heads], VALUE[:1, :, :heads]
  stats = macs.network_stats(
    Attending(), examples.as_example(given), products=PRODUCTS
  )
  # 5 queries and 7 keys of 4 heads with 8 features.
  assert [x.macs for x in stats.layers[1:]] == [4 * 5 * 7 * 8] * 2


def test_products_are_left_alone_unless_a_rule_asks(net):
  model = asga_jax.searchable(net, X, rules=[rules.Rule(".*", 4, 4)])
  assert not any("attention_fn" in p for p in layers.quantized_layers(model))
  assert model.flax.attention_fn is nnx.dot_product_attention


def test_rule_makes_products_layers(net):
  model = asga_jax.searchable(
    net,
    X,
    bits=(3, 8),
    rules=[
      rules.Rule("hand/.*", 4, 8, products=True),
      rules.Rule(".*/qk", products=True),
    ],
  )
  network, _ = model.deployed_network
  found = layers.quantized_layers(model)
  asked = [path for path in network.paths if "attention_fn" in path]
  assert asked == [
    "flax/attention_fn/qk",
    *(f"hand/{product}" for product in PRODUCTS),
  ]
  assert found["flax/attention_fn/qk"].weight.candidates() == (3, 8)
  assert found["hand/attention_fn/pv"].weight.candidates() == (4,)
  assert found["hand/attention_fn/pv"].activation.candidates() == (8,)
  # The products of the network that was handed in are Flax's still.
  assert net.flax.attention_fn is nnx.dot_product_attention


def test_quantized_products_by_hand():
  """Scores are never below zero, so their codes are unsigned."""

  def quantize(x, name, kind):
    choice = getattr(found[f"attention_fn/{name}"], kind)
    step, (lower, upper) = choice.steps()[0], np.array(choice.grids()[:2])[:, 0]
    assert upper - lower == 2 ** choice.candidates()[0] - 1
    return np.clip(np.round(np.asarray(x) / step), lower, upper) * step

  net = Hand(nnx.Rngs(1))
  model = asga_jax.searchable(
    net,
    X,
    rules=[rules.Rule(".*", 32, 32), rules.Rule(".*", 4, 3, products=True)],
  )
  found = layers.quantized_layers(model)
  q, k, v = (layer(X).reshape(2, 6, 3, 4) for layer in net.qkv)
  q = quantize(q, "qk", "activation")
  k = quantize(k, "qk", "weight")
  v = quantize(v, "pv", "weight")
  scores = np.einsum("nqhd,nkhd->nhqk", q, k) / 2
  scores = np.where(np.tri(6, dtype=bool), scores, -np.inf)
  p = np.exp(scores - scores.max(-1, keepdims=True))
  p = p / p.sum(-1, keepdims=True)
  p = quantize(p, "pv", "activation")
  assert found["attention_fn/pv"].activation.shift is None
  expected = np.einsum("nhqk,nkhd->nqhd", p, v).reshape(X.shape)
  np.testing.assert_allclose(model(X), expected, atol=1e-5)


@pytest.mark.slow
def test_float_candidates_give_the_float_network(net):
  model = asga_jax.searchable(
    net,
    X,
    rules=[
      rules.Rule(".*", 32, 32),
      rules.Rule(".*", 32, 32, products=True),
    ],
  )
  np.testing.assert_allclose(model(X), net(X), atol=1e-5)


@pytest.mark.slow
def test_network_with_products_is_searched_and_fixed(net):
  model = asga_jax.searchable(
    net, X, bits=(2, 4, 8), rules=[rules.Rule(".*", products=True)]
  )
  batch = {"image": X, "label": jnp.zeros(2, jnp.int32)}
  result = asga_jax.search_policy(
    model,
    [batch] * 4,
    budget="bops=4bit",
    settings=asga_jax.SearchSettings(steps=4),
  )
  policy = asga_jax.allocate(result)
  fixed = asga_jax.with_policy(result.model, policy)
  path = "flax/attention_fn/pv"
  assert policy.layers[path].weights == 0
  assert layers.product_of(fixed.flax.attention_fn.pv).weight.candidates() == (
    policy.layers[path].weight_bits,
  )
  # Logits of the products were trained, by both passes.
  moved = result.scores["first_order"]
  assert any("attention_fn/pv" in group for group in moved)
  assert np.isfinite(fixed(X)).all()
  by_hand = sum(
    x.macs
    * policy.layers[x.path].weight_bits
    * policy.layers[x.path].activation_bits
    for x in result.space.network.layers
  )
  assert policy.cost["bops"] == by_hand


def test_calibration_restarts_products(net):
  from asga_jax.quantization import calibration

  model = asga_jax.searchable(net, X, rules=[rules.Rule(".*", products=True)])
  again = calibration.calibrate(model, 10 * X)
  first, second = (
    layers.product_of(m.hand.attention_fn.qk).weight.parameter[...]
    for m in (model, again)
  )
  assert (np.asarray(second) > 2 * np.asarray(first)).all()


def test_layers_that_read_one_tensor_share_bits(net):
  model = asga_jax.searchable(net, X, tie_shared_inputs=True)
  found = layers.quantized_layers(model)
  shared = [
    [f"flax/{name}" for name in ("query", "key", "value")],
    [f"hand/qkv/{i}" for i in range(3)],
  ]
  for paths in shared:
    logits = {id(found[path].activation.logits) for path in paths}
    assert len(logits) == 1
    assert len({id(found[path].weight.logits) for path in paths}) == 3
  everywhere = {id(layer.activation.logits) for layer in found.values()}
  assert len(everywhere) == len(found) - 4
  loose = layers.quantized_layers(asga_jax.searchable(net, X))
  assert len({id(x.activation.logits) for x in loose.values()}) == len(loose)


@pytest.mark.slow
def test_shortcut_shares_the_bits_of_its_block():
  network = models.constructor("resnet8")(10, stem="small", rngs=nnx.Rngs(0))
  images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  model = asga_jax.searchable(network, images, tie_shared_inputs=True)
  tied: dict[int, list[str]] = {}
  for path, layer in layers.quantized_layers(model).items():
    tied.setdefault(id(layer.activation.logits), []).append(path)
  groups = [sorted(paths) for paths in tied.values() if len(paths) > 1]
  assert groups
  assert all(
    [path.rsplit("/", 1)[0] for path in paths]
    == [paths[0].rsplit("/", 1)[0]] * 2
    for paths in groups
  )


def test_rules_go_before_shared_inputs(net):
  model = asga_jax.searchable(
    net,
    X,
    rules=[
      rules.Rule("hand/qkv/0", activation_bits=8),
      rules.Rule("flax/query|last", tie="activations"),
    ],
    tie_shared_inputs=True,
  )
  found = layers.quantized_layers(model)
  logits = {path: id(x.activation.logits) for path, x in found.items()}
  assert found["hand/qkv/0"].activation.candidates() == (8,)
  assert logits["hand/qkv/1"] == logits["hand/qkv/2"] != logits["hand/qkv/0"]
  assert logits["flax/query"] == logits["last"]
  assert logits["flax/key"] == logits["flax/value"] != logits["flax/query"]


def test_table_says_which_rule_decided(net):
  model = asga_jax.searchable(
    net,
    X,
    bits=(4, 8),
    rules=[
      rules.Rule("hand/.*", 4, tie="activations"),
      rules.Rule("flax/.*", products=True),
    ],
  )
  lines = asga_jax.format_rules(model).splitlines()
  rows = {line.split()[0]: line for line in lines[1:]}
  assert set(rows) == set(layers.quantized_layers(model))
  assert rows["first"].split() == ["first", "8", "8", "default"]
  assert "rule 0 'hand/.*'" in rows["hand/qkv/1"]
  assert "4,8 (rule 0)" in rows["hand/qkv/1"]
  assert "rule 1 'flax/.*'" in rows["flax/attention_fn/pv"]
  with pytest.raises(ValueError, match="not searchable"):
    asga_jax.format_rules(net)


@pytest.mark.parametrize(
  ("rule", "message"),
  [
    (
      rules.Rule("hand/qkv/0", products=True),
      "matches no product of attention",
    ),
    (rules.Rule(".*/qk"), "matches no layer"),
  ],
)
def test_rules_that_match_nothing(net, rule, message):
  with pytest.raises(ValueError, match=message):
    asga_jax.searchable(net, X, rules=[rule])


def test_products_of_another_attention_are_not_offered(net):
  net.flax.attention_fn = functools.partial(nnx.dot_product_attention)
  with pytest.raises(ValueError, match=r"there are: hand/attention_fn/qk"):
    asga_jax.searchable(net, X, rules=[rules.Rule("flax/.*", products=True)])


def test_unknown_products_are_refused(net):
  with pytest.raises(ValueError, match=r"no products \['flax/qk'\]"):
    macs.network_stats(net, (6, 12), products=["flax/qk"])


def test_products_must_be_a_flag():
  with pytest.raises(ValueError, match="rule 'a': products=1"):
    rules.Rule("a", products=1)
