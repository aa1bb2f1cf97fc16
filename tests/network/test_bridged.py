"""A network of Flax Linen that came over by `nnx.bridge.ToNNX`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import asga_jax
from asga_jax.network import bridged, examples
from asga_jax.quantization import layers


class Block(linen.Module):
  """A convolution, a norm and dropout."""

  features: int

  @linen.compact
  def __call__(self, x, train=False):
    x = linen.Conv(self.features, (3, 3), use_bias=False, name="conv")(x)
    x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    return linen.Dropout(0.5, deterministic=not train)(linen.relu(x))


class Cnn(linen.Module):
  """As the examples of Linen are written; a norm that stays in Linen."""

  @linen.compact
  def __call__(self, x, train=False):
    x = Block(4)(x, train)
    x = Block(6)(x, train)
    x = linen.LayerNorm()(x.mean(axis=(1, 2)))
    x = linen.relu(linen.Dense(5)(x))
    x = x @ self.param("mix", linen.initializers.orthogonal(), (5, 5))
    return linen.Dense(3, name="head")(x)


LAYERS = ["Block_0/conv", "Block_1/conv", "Dense_0", "head"]


@pytest.fixture
def images(tiny_batches):
  return tiny_batches[0]["image"]


@pytest.fixture
def network(images):
  model = nnx.bridge.ToNNX(Cnn(), rngs=nnx.Rngs(0))
  nnx.bridge.lazy_init(model, images)
  return model


def test_it_computes_what_linen_computes(network, images):
  opened = bridged.with_layers(network, examples.as_example(images))
  opened.eval()
  np.testing.assert_array_equal(opened(images), network(images))
  # In training mode, with the statistics that Linen would leave.
  no_dropout = nnx.clone(opened)
  no_dropout.train()
  for _, module in nnx.iter_modules(no_dropout):
    if isinstance(module, nnx.Dropout):
      module.rate = 0.0
  variables = nnx.bridge.variables.nnx_attrs_to_linen_vars(
    {
      k: v
      for k, v in vars(network).items()
      if k[0].isupper() or k in ("head", "mix")
    }
  )
  got = no_dropout(images)
  plain = Cnn(parent=None)

  def without_dropout(next_call, args, kwargs, context):
    if isinstance(context.module, linen.Dropout):
      return args[0]
    return next_call(*args, **kwargs)

  with linen.intercept_methods(without_dropout):
    want, updates = plain.apply(
      variables, images, train=True, mutable=["batch_stats"]
    )
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
  found = no_dropout.Block_1["BatchNorm_0"]
  wanted = updates["batch_stats"]["Block_1"]["BatchNorm_0"]
  np.testing.assert_allclose(found.mean[...], wanted["mean"], atol=1e-6)
  np.testing.assert_allclose(found.var[...], wanted["var"], atol=1e-6)


@pytest.mark.slow
def test_a_bridged_network_is_searched_like_any_other(
  network, images, tiny_batches
):
  before = jax.tree.map(
    np.asarray, nnx.to_pure_dict(nnx.state(network, nnx.Param))
  )
  model = asga_jax.searchable(network, images, bits=(2, 4, 8))
  assert list(layers.quantized_layers(model)) == LAYERS
  refused = asga_jax.not_searched(model)
  assert refused["mix"] == "a parameter of shape (5, 5) that runs in Linen"
  assert "its own code multiplies (25 MACs" in refused["linen_rest"]
  paths = [stats.path for stats in asga_jax.layer_stats(model)]
  assert paths == [*LAYERS, "linen_rest"]
  result = asga_jax.search_policy(
    model,
    tiny_batches[:4],
    budget="bops=4bit",
    settings=asga_jax.SearchSettings(steps=4),
    progress=False,
  )
  policy = asga_jax.allocate(result, budget="bops=6bit")
  inputs = [batch["image"] for batch in tiny_batches[:4]]
  fixed = asga_jax.with_policy(result.model, policy, batches=inputs)
  # The statistics moved in the search, and moved again for the policy.
  means = [
    np.asarray(model.Block_0["BatchNorm_0"].mean[...])
    for model in (model, result.model, fixed)
  ]
  assert (means[0] == 0).all()
  assert (means[1] != 0).all()
  assert (means[2] != means[1]).any()
  logits = nnx.jit(lambda m, x: m(x))(fixed, images)
  assert logits.shape == (16, 3)
  np.testing.assert_array_equal(fixed(images), fixed(images))  # no dropout
  jax.tree.map(
    np.testing.assert_array_equal,
    before,
    nnx.to_pure_dict(nnx.state(network, nnx.Param)),
  )


@pytest.mark.slow
def test_one_within_another_network(network, images):
  class Outer(nnx.Module):
    def __init__(self, inner, rngs):
      self.inner = inner
      self.last = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
      return self.last(nnx.relu(self.inner(x)))

  outer = Outer(network, nnx.Rngs(1))
  model = asga_jax.searchable(outer, images)
  assert list(layers.quantized_layers(model)) == [
    *(f"inner/{path}" for path in LAYERS),
    "last",
  ]


def test_a_linen_module_is_told_of_the_bridge(images):
  with pytest.raises(ValueError, match=r"Cnn; expected .* nnx\.bridge\.ToNNX"):
    asga_jax.searchable(Cnn(), images)
  unready = nnx.bridge.ToNNX(Cnn(), rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="lazy_init"):
    asga_jax.searchable(unready, images)


CALLS = {
  "start_search": lambda x, i: asga_jax.start_search(x, budget="bops=4bit"),
  "search_policy": lambda x, i: asga_jax.search_policy(
    x, [], budget="bops=4bit"
  ),
  "measure_scores": lambda x, i: asga_jax.measure_scores(
    x, [i], budget="bops=4bit"
  ),
  "train_policy": lambda x, i: asga_jax.train_policy(x, []),
  "with_policy": lambda x, i: asga_jax.with_policy(x, None),
  "layer_stats": lambda x, i: asga_jax.layer_stats(x),
  "not_searched": lambda x, i: asga_jax.not_searched(x),
  "quantize": lambda x, i: asga_jax.quantize(x, i, None),
  "load_packed": lambda x, i: asga_jax.load_packed(x, "nowhere"),
  "load_weights": lambda x, i: asga_jax.load_weights(x, "nowhere"),
  "reestimate": lambda x, i: asga_jax.reestimate_batch_norm(x, [i]),
  "round_weights": lambda x, i: asga_jax.round_weights(x, [i]),
  "correct_bias": lambda x, i: asga_jax.correct_bias(x, [i], reference=x),
  "export_onnx": lambda x, i: asga_jax.export_onnx(x, i.shape[1:]),
  "export_stablehlo": lambda x, i: asga_jax.export_stablehlo(x, i.shape[1:]),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_tells_a_linen_module_of_the_bridge(call, images):
  with pytest.raises(ValueError, match=r"Cnn; expected .* nnx\.bridge\.ToNNX"):
    CALLS[call](Cnn(), images)


def test_a_network_without_a_bridge_is_itself(tiny_network, images):
  assert bridged.with_layers(tiny_network, images) is tiny_network
  assert jnp.isfinite(tiny_network(images)).all()
