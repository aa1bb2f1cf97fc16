"""Whatever a function is called with, one sentence says what is wrong."""

import jax
import numpy as np
import pytest
from flax import linen, nnx

import asga_jax

X = np.ones((4, 8), np.float32)
BATCHES = [{"image": X, "label": np.zeros(4, np.int32)}]
WRONG = [
  None,
  True,
  0,
  -1,
  1.5,
  float("nan"),
  "",
  "x",
  b"x",
  "é" * 1000,
  (),
  [],
  {},
  set(),
  object(),
  lambda: 0,
  1j,
  2**70,
  ...,
  slice(3),
  range(3),
  iter([X]),
  np,
  nnx.Linear,
  linen.Dense(3),
  np.float32(3),
  np.datetime64("2020"),
  np.zeros(0),
  np.zeros((2, 0)),
  np.array(["a"]),
  np.array([None]),
  np.full((4, 8), np.nan),
  np.full((4, 8), np.inf),
  np.zeros((4, 8), complex),
  np.zeros((4, 9), np.float32),
  np.zeros(8, np.float32),
  np.zeros((2, 3, 4, 8, 1), np.float32),
  jax.random.key(0),
  jax.ShapeDtypeStruct((4, 9), np.float32),
  (X, X),
  {"y": X},
  {1: X},
  [X],
]


class Net(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.first = nnx.Linear(8, 8, rngs=rngs)
    self.last = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    return self.last(nnx.relu(self.first(x)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  net = Net()
  model = asga_jax.searchable(net, X, bits=(2, 8))
  result = asga_jax.search_policy(
    model,
    BATCHES,
    budget="bops=6bit",
    settings=asga_jax.SearchSettings(steps=1),
    progress=False,
  )
  policy = asga_jax.allocate(result)
  fixed = asga_jax.with_policy(result.model, policy)
  file = tmp_path_factory.mktemp("files") / "net.safetensors"
  asga_jax.save_packed(fixed, policy, file)
  return net, model, result, policy, fixed, file


def _search(model, batches=BATCHES, budget="bops=6bit"):
  settings = asga_jax.SearchSettings(steps=1)
  return asga_jax.search_policy(
    model, batches, budget=budget, settings=settings, progress=False
  )


def _train(model, batches=BATCHES):
  settings = asga_jax.FinetuneSettings(steps=1)
  return asga_jax.train_policy(
    model, batches, settings=settings, progress=False
  )


def _measure(model, batches=(X,), **settings):
  settings = {"budget": "bops=6bit", "score": "kl", **settings}
  return asga_jax.measure_scores(model, batches, progress=False, **settings)


def _post_training(model, batches=(X,), budget="bops=6bit"):
  return asga_jax.quantize_post_training(
    model, batches, budget=budget, progress=False
  )


def _improve(result, policy, batches=(X,)):
  return asga_jax.improve_policy(
    result, policy, batches, evaluations=1, progress=False
  )


# Of what was made, and a wrong value in the place of one of it.
CALLS = {
  "searchable model": lambda m, x: asga_jax.searchable(x, X),
  "searchable example": lambda m, x: asga_jax.searchable(m[0], x),
  "searchable bits": lambda m, x: asga_jax.searchable(m[0], X, bits=x),
  "searchable rules": lambda m, x: asga_jax.searchable(m[0], X, rules=x),
  "quantize model": lambda m, x: asga_jax.quantize(x, X, m[3]),
  "quantize example": lambda m, x: asga_jax.quantize(m[0], x, m[3]),
  "quantize policy": lambda m, x: asga_jax.quantize(m[0], X, x),
  "with_policy model": lambda m, x: asga_jax.with_policy(x, m[3]),
  "with_policy policy": lambda m, x: asga_jax.with_policy(m[1], x),
  "batch norm": lambda m, x: asga_jax.reestimate_batch_norm(x, [X]),
  "search model": lambda m, x: _search(x),
  "search budget": lambda m, x: _search(m[1], budget=x),
  "search batches": lambda m, x: _search(m[1], x),
  "train model": lambda m, x: _train(x),
  "allocate result": lambda m, x: asga_jax.allocate(x),
  "onnx model": lambda m, x: asga_jax.export_onnx(x, (8,)),
  "onnx shape": lambda m, x: asga_jax.export_onnx(m[4], x),
  "stablehlo model": lambda m, x: asga_jax.export_stablehlo(x, (8,)),
  "stablehlo shape": lambda m, x: asga_jax.export_stablehlo(m[4], x),
  "packed model": lambda m, x: asga_jax.save_packed(x, m[3], m[5]),
  "packed policy": lambda m, x: asga_jax.save_packed(m[4], x, m[5]),
  "packed path": lambda m, x: asga_jax.load_packed(m[1], x),
  "packed network": lambda m, x: asga_jax.load_packed(x, m[5]),
  "policy path": lambda m, x: asga_jax.load_policy(x),
  "weights path": lambda m, x: asga_jax.load_weights(m[0], x),
  "weights model": lambda m, x: asga_jax.load_weights(x, m[5]),
  "correct model": lambda m, x: asga_jax.correct_bias(x, [X], reference=m[0]),
  "correct batches": lambda m, x: asga_jax.correct_bias(
    m[4], x, reference=m[0]
  ),
  "correct reference": lambda m, x: asga_jax.correct_bias(
    m[4], [X], reference=x
  ),
  "round model": lambda m, x: asga_jax.round_weights(x, [X]),
  "round batches": lambda m, x: asga_jax.round_weights(m[4], x),
  "measure model": lambda m, x: _measure(x),
  "measure batches": lambda m, x: _measure(m[1], x),
  "measure budget": lambda m, x: asga_jax.allocate(_measure(m[1], budget=x)),
  "measure score": lambda m, x: _measure(m[1], score=x),
  "improve result": lambda m, x: _improve(x, m[3]),
  "improve policy": lambda m, x: _improve(m[2], x),
  "improve batches": lambda m, x: _improve(m[2], m[3], x),
  "post-training model": lambda m, x: _post_training(x),
  "post-training batches": lambda m, x: _post_training(m[0], x),
  "post-training budget": lambda m, x: _post_training(m[0], budget=x),
  "not_searched": lambda m, x: asga_jax.not_searched(x),
  "layer_stats": lambda m, x: asga_jax.layer_stats(x),
}
# A second and more each: they compile before they see what is wrong.
SLOW = ("correct batches", "search batches", "post-training batches")
# How many are right for these: three bits, an empty list of rules, batches.
HARMLESS = {
  "searchable bits": 1,
  "searchable rules": 2,
  "correct batches": 3,
  "round batches": 2,
  "measure batches": 3,
  "improve batches": 3,
  "post-training batches": 3,
}


@pytest.mark.parametrize(
  "call",
  [
    pytest.param(call, marks=pytest.mark.slow if call in SLOW else ())
    for call in CALLS
  ],
)
def test_malformed_input_gets_one_sentence(made, call):
  accepted = 0
  for wrong in WRONG:
    try:
      CALLS[call](made, wrong)
      accepted += 1
    except (ValueError, OSError) as error:
      text = str(error)
      assert 10 < len(text) < 2500
      assert "Traceback" not in text
      assert "jax.errors" not in text
  assert accepted <= HARMLESS.get(call, 0), accepted
