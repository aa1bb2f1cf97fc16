"""Networks of every structure through search, policy and files."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import nnx

import asga_jax
from asga_jax.cost import costs
from asga_jax.quantization import calibration, layers
from asga_jax.weights import load

X = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
LABELS = (np.arange(8) % 4).astype(np.int32)
STEPS = asga_jax.SearchSettings(steps=2)


class Block(nnx.Module):
  def __init__(self, rngs):
    self.linear = nnx.Linear(8, 8, rngs=rngs)

  def __call__(self, x):
    return nnx.relu(self.linear(x))


def _remat(block, x):
  return nnx.remat(lambda block, x: block(x))(block, x)


def _jit(block, x):
  return nnx.jit(lambda block, x: block(x))(block, x)


def _vmap(block, x):
  return jax.vmap(block)(x)


def _cond(block, x):
  return jax.lax.cond(x.sum() > 1e9, lambda x: x, block, x)


def _scan(block, x):
  return jax.lax.scan(lambda x, _: (block(x), None), x, length=3)[0]


class Net(nnx.Module):
  def __init__(self, how):
    rngs = nnx.Rngs(0)
    self.block = Block(rngs)
    self.last = nnx.Linear(8, 4, rngs=rngs)
    self.how = nnx.static(how)

  def __call__(self, x):
    return self.last(self.how(self.block, x))


class Recurrent(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.rnn = nnx.RNN(nnx.LSTMCell(8, 8, rngs=rngs))
    self.last = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    return self.last(self.rnn(x)[:, -1])


NETWORKS = {
  "remat": (lambda: Net(_remat), X),
  "jit": (lambda: Net(_jit), X),
  "vmap": (lambda: Net(_vmap), X),
  "cond": (lambda: Net(_cond), X),
  "scan": (lambda: Net(_scan), X),
  "recurrent": (Recurrent, np.stack([X, 2 * X, -X], 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_within_transformations_are_searched(name):
  make, x = NETWORKS[name]
  net = make()
  rules = [asga_jax.Rule(".*", weight_bits=(2, 8), activation_bits=(2, 8))]
  model = asga_jax.searchable(net, x, rules=rules)
  quantized = layers.quantized_layers(model)
  inner = [path for path in quantized if path != "last"]
  assert len(inner) == (8 if name == "recurrent" else 1)
  # Ranges are those of all that a layer reads, of every turn.
  exact = asga_jax.searchable(net, x, bits=(8,))
  want = net(x)
  assert np.abs(exact(x) - want).max() < 0.05 * np.abs(want).max()
  result = asga_jax.search_policy(
    model,
    [{"image": x, "label": LABELS}] * 2,
    budget="bops=4bit",
    settings=STEPS,
    progress=False,
  )
  policy = asga_jax.allocate(result)
  fixed = asga_jax.with_policy(result.model, policy)
  assert fixed(x).shape == (8, 4)
  assert np.isfinite(fixed(x)).all()


def test_what_a_modules_own_code_multiplies_is_named_and_counted():
  class Own(nnx.Module):
    def __init__(self):
      rngs = nnx.Rngs(0)
      self.first = nnx.Linear(8, 8, rngs=rngs)
      self.matrix = nnx.Param(jnp.eye(8))
      self.position = nnx.Param(jnp.ones((1, 8)))
      self.last = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
      return self.last(self.first(x) @ self.matrix[...] + self.position[...])

  model = asga_jax.searchable(Own(), X, bits=(4,), end_bits=4)
  (path,) = asga_jax.not_searched(model)
  assert path == "(the network itself)"
  assert "64 MACs" in asga_jax.not_searched(model)[path]
  *_, own = asga_jax.layer_stats(model)
  assert (own.macs, own.weights) == (64, 0)
  network, _ = model.deployed_network
  bits = dict.fromkeys(network.paths, (4, 4))
  found = costs.total_cost(network, bits, costs.BOPS)
  assert found == (8 * 8 + 8 * 4) * 16 + 64 * 32 * 32


class Several(nnx.Module):
  """Token ids and a mask, or by name."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.embed = nnx.Embed(16, 8, rngs=rngs)
    self.first = nnx.Linear(8, 8, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.last = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, ids, weights, *, deterministic=False):
    x = nnx.relu(self.first(self.embed(ids)))
    x = self.dropout(x, deterministic=deterministic)
    return self.last((x * weights[..., None]).mean(1))


IDS = np.random.default_rng(0).integers(0, 16, (8, 5)).astype(np.int32)
WEIGHTS = np.linspace(0.5, 1, 40).reshape(8, 5).astype(np.float32)


@pytest.mark.parametrize(
  "example",
  [
    pytest.param((IDS, WEIGHTS), marks=pytest.mark.slow),
    pytest.param(
      {"ids": IDS, "weights": WEIGHTS, "deterministic": True},
      marks=pytest.mark.slow,
    ),
  ],
  ids=["tuple", "dict"],
)
def test_several_inputs_in_order_or_by_name(example):
  model = asga_jax.searchable(Several(), example, bits=(2, 8), end_bits=8)
  assert list(layers.quantized_layers(model)) == ["first", "last"]

  def loss_fn(model, batch):
    logits = model(batch["ids"], batch["weights"])
    return jnp.mean((logits - 1) ** 2), {}

  result = asga_jax.search_policy(
    model,
    [{"ids": IDS, "weights": WEIGHTS}] * 2,
    loss_fn,
    budget="bops=6bit",
    settings=STEPS,
    progress=False,
  )
  policy = asga_jax.allocate(result)
  fixed = asga_jax.quantize(Several(), example, policy)
  assert fixed(IDS, WEIGHTS).shape == (8, 4)


def test_token_ids_in_every_format(tmp_path):
  class Words(nnx.Module):
    def __init__(self):
      rngs = nnx.Rngs(0)
      self.embed = nnx.Embed(16, 8, rngs=rngs)
      self.first = nnx.Linear(8, 8, rngs=rngs)
      self.last = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, ids):
      return self.last(nnx.relu(self.first(self.embed(ids))).mean(1))

  model = asga_jax.searchable(Words(), IDS, bits=(8,))
  want = model(IDS)
  made = asga_jax.export_onnx(model, (5,))
  session = onnxruntime.InferenceSession(
    made.SerializeToString(), providers=["CPUExecutionProvider"]
  )
  assert session.get_inputs()[0].type == "tensor(int32)"
  (found,) = session.run(None, {"image": IDS})
  np.testing.assert_allclose(found, want, atol=1e-5)
  program = jax.export.deserialize(
    bytearray(asga_jax.export_stablehlo(model, (5,)))
  )
  np.testing.assert_allclose(program.call(IDS), want, atol=1e-5)


class Plain(nnx.Module):
  def __init__(self, between=nnx.relu):
    rngs = nnx.Rngs(0)
    self.first = nnx.Linear(8, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.last = nnx.Linear(8, 4, rngs=rngs)
    self.between = nnx.static(between)

  def __call__(self, x, **settings):
    return self.last(self.between(self.norm(self.first(x), **settings)))


def _train(model, loss_fn=None):
  def default(model, batch):
    return jnp.mean((model(batch) - 1) ** 2), {}

  return asga_jax.train_policy(
    model,
    [X] * 3,
    loss_fn or default,
    settings=asga_jax.FinetuneSettings(steps=3),
    progress=False,
  )


def test_an_unsigned_input_that_turns_negative_is_told(caplog):
  model = asga_jax.searchable(Plain(), np.abs(X), bits=(8,))
  first = layers.product_of(model.first)
  assert first.activation.grids().lower[0] == 0
  # A ReLU proves that the other cannot be.
  assert layers.product_of(model.last).below_zero is None
  # Outside of a training nothing is kept: any transformation takes it.
  model.eval()
  jax.jit(jax.vmap(lambda x: model(x[None])))(X)
  with caplog.at_level("WARNING"):
    trained = _train(model)
  share = 100 * float((X < 0).mean())
  assert f"'first': up to {share:.3g} %" in caplog.text
  assert "signed=True" in caplog.text
  assert "'last'" not in caplog.text
  assert "below_zero" not in " ".join(load.variables_of(trained))
  caplog.clear()
  signed = asga_jax.searchable(
    Plain(), np.abs(X), bits=(8,), rules=[asga_jax.Rule("first", signed=True)]
  )
  with caplog.at_level("WARNING"):
    _train(signed)
  assert "below zero" not in caplog.text


WITHIN = {
  "remat": lambda layer, x: nnx.remat(lambda layer, x: layer(x))(layer, x),
  "jit": lambda layer, x: jax.jit(layer)(x),
  "vmap": lambda layer, x: jax.vmap(layer)(x),
  "scan": lambda layer, x: jax.lax.scan(lambda c, v: (c, layer(v)), 0.0, x)[1],
}


@pytest.mark.parametrize("how", WITHIN)
@pytest.mark.parametrize(
  "proven", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_no_input_is_unsigned_where_no_training_would_see(how, proven):
  class Within(nnx.Module):
    def __init__(self):
      self.layer = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

    def __call__(self, x):
      return WITHIN[how](self.layer, nnx.relu(x) if proven else x)

  x = np.abs(np.random.default_rng(0).normal(size=(16, 6))).astype(np.float32)
  model = asga_jax.searchable(Within(), x, bits=(8,))
  product = layers.product_of(model.layer)
  assert product.below_zero is None
  assert (product.activation.grids().lower[0] == 0) == proven
  # So also where its ranges are taken again, or for the first time.
  shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
  for made in (model, asga_jax.searchable(Within(), shape, bits=(8,))):
    again = calibration.calibrate(made, x)
    lower = layers.product_of(again.layer).activation.grids().lower[0]
    assert (lower == 0) == proven


def test_batch_norm_that_never_moves_is_told(caplog):
  model = asga_jax.searchable(Plain(), X, bits=(8,))

  def overriding(model, batch):
    return jnp.mean(model(batch, use_running_average=True) ** 2), {}

  with caplog.at_level("WARNING"):
    _train(model, overriding)
  assert "none of the 1 batch norms has moved" in caplog.text
  caplog.clear()
  with caplog.at_level("WARNING"):
    _train(model)
  assert "batch norms has moved" not in caplog.text


class Called(nnx.Module):
  """Calls one layer on tensors of two scales."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.first = nnx.Linear(8, 8, rngs=rngs)
    self.shared = nnx.Linear(8, 8, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return self.shared(self.first(x)) + self.shared(0.01 * x)


def test_ranges_are_of_all_calls_and_of_rare_values():
  rules = [asga_jax.Rule(".*", weight_bits=32, activation_bits=8)]
  net = Called()
  x = X.copy()
  x[0, 0] = 60
  model = asga_jax.searchable(net, x, rules=rules)
  want = net(x)
  assert np.abs(model(x) - want).max() < 0.02 * np.abs(want).max()
  product = layers.product_of(model.first)
  step = float(product.activation.parameter[...][0])
  lower, upper = np.array(product.activation.grids()[:2])[:, 0]

  def error(step, lower, upper):
    return np.sum((step * np.clip(np.rint(x / step), lower, upper) - x) ** 2)

  tried = 60 / 127 * 2.0 ** (-np.arange(64) * 6 / 63)
  best = min(error(each, -128, 127) for each in tried)
  assert error(step, lower, upper) <= 1.001 * best
