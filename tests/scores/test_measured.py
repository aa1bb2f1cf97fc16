"""Measured scores against a network that is quantized by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.quantization import layers
from asga_jax.scores import measured

X = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)


class Net(nnx.Module):
  """Two layers, whose second reads a ReLU."""

  def __init__(self, rngs):
    self.first = nnx.Linear(6, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.last = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, x):
    return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def _searchable(bits=(2, 4, 8), **settings):
  net = Net(nnx.Rngs(3))
  return asga_jax.searchable(net, X, bits=bits, rules=_rules(bits), **settings)


def _rules(bits):
  return [asga_jax.Rule(".*", weight_bits=bits, activation_bits=bits)]


def _values(model):
  state = nnx.state(model, nnx.Not(nnx.RngState))
  return jax.tree.map(np.asarray, nnx.to_pure_dict(state))


def _round(x, choice, index):
  step = np.asarray(choice.steps())[index]
  lower, upper = (np.asarray(c)[index] for c in choice.grids()[:2])
  # In float32 as the network: a value may lie on a border between codes.
  scaled = np.asarray(x, np.float32) * (np.float32(1) / step)
  return step * np.clip(np.rint(scaled), lower, upper)


def _outputs(model, quantized=None, index=0):
  """Computes the network with one operand rounded, in NumPy."""
  products = layers.quantized_layers(model)

  def operand(path, kind, x):
    if (path, kind) != quantized:
      return np.asarray(x)
    return _round(x, getattr(products[path], kind), index)

  x = operand("first", "activation", X)
  x = x @ operand("first", "weight", model.first.kernel[...])
  x = (x + model.first.bias[...]) / np.sqrt(1 + 1e-5)
  x = operand("last", "activation", np.maximum(x, 0))
  x = x @ operand("last", "weight", model.last.kernel[...])
  return np.asarray(x + model.last.bias[...], np.float64)


def _kl(first, second):
  first, second = (
    x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (first, second)
  )
  return np.mean(np.sum(np.exp(first) * (first - second), axis=-1))


def test_every_candidate_is_scored_by_what_it_does_alone():
  model = _searchable()
  found = asga_jax.measure_scores(
    model,
    [X[:5], X[5:10], X[10:]],
    budget="bops=4bit",
    corrected=False,
    progress=False,
  )
  reference = _outputs(model)
  checked = 0
  for path, choice in found.space.choices.items():
    for kind in ("weight", "activation"):
      by_hand = [
        _kl(reference, _outputs(model, (path, kind), index))
        for index in range(3)
      ]
      scores = found.scores["kl"][getattr(choice, f"{kind}_group")]
      np.testing.assert_allclose(
        -scores, np.sort(by_hand)[::-1], rtol=2e-3, atol=1e-7
      )
      checked += 1
  assert checked == 4
  policy = asga_jax.allocate(found)
  assert policy.provenance["score"] == "kl"
  assert policy.cost["budget_used"] <= 1


def test_float_candidates_cost_nothing_and_the_model_is_left_alone():
  model = _searchable(bits=(3, 32))
  before = _values(model)
  found = asga_jax.measure_scores(
    model, [X], budget="bops=16bit", progress=False
  )
  for scores in found.scores["kl"].values():
    assert scores[1] == 0 > scores[0]
  jax.tree.map(np.testing.assert_array_equal, before, _values(model))


def test_tied_tensors_are_quantized_together():
  bits = (2, 8)
  rules = [
    asga_jax.Rule(".*", weight_bits=bits, activation_bits=8, tie="weights")
  ]
  model = asga_jax.searchable(Net(nnx.Rngs(3)), X, bits=bits, rules=rules)
  found = asga_jax.measure_scores(
    model, [X], budget="bops=4bit", corrected=False, progress=False
  )
  group = found.space.choices["first"].weight_group
  assert group == found.space.choices["last"].weight_group
  products = layers.quantized_layers(model)
  float_model = Net(nnx.Rngs(3))
  float_model.eval()
  for path in ("first", "last"):
    kernel = getattr(float_model, path).kernel
    kernel[...] = jnp.asarray(
      _round(kernel[...], products[path].weight, 0), jnp.float32
    )
  expected = _kl(_outputs(model), np.asarray(float_model(X), np.float64))
  np.testing.assert_allclose(-found.scores["kl"][group][0], expected, rtol=2e-3)


def test_a_cache_is_gone_on_from(tmp_path):
  model, path = _searchable(), tmp_path / "scores.json"
  calls = []

  def divergence(reference, found):
    jax.debug.callback(lambda: calls.append(1))
    return measured.kl_divergence(reference, found)

  def run(model, x):
    calls.clear()
    found = asga_jax.measure_scores(
      model,
      [x],
      budget="bops=4bit",
      divergence=divergence,
      cache=path,
      progress=False,
    )
    jax.effects_barrier()
    return found.scores["kl"]

  whole = run(model, X)
  assert len(calls) == 4 * 3
  stored = json.loads(path.read_text())
  stored["values"].popitem()
  path.write_text(json.dumps(stored))
  again = run(model, X)
  assert len(calls) == 3
  for group, values in whole.items():
    np.testing.assert_array_equal(again[group], values)
  for other, x in ((model, X + 1), (_searchable(bits=(2, 4, 6)), X)):
    with pytest.raises(ValueError, match="scores of another network, of other"):
      run(other, x)
  path.write_text("{")
  with pytest.raises(ValueError, match="holds no scores"):
    run(model, X)


def test_more_bits_never_score_less():
  fitted = measured.monotone((8, 2, 4, 6), (0.1, 5.0, 1.0, 2.0))
  np.testing.assert_allclose(fitted, [0.1, 5.0, 1.5, 1.5])


def test_bad_input():
  model = _searchable()
  with pytest.raises(ValueError, match="batches is empty"):
    asga_jax.measure_scores(model, [], budget="bops=4bit")
  with pytest.raises(ValueError, match="is not searchable"):
    asga_jax.measure_scores(Net(nnx.Rngs(0)), [X], budget="bops=4bit")
  with pytest.raises(ValueError, match="rounded_on is empty"):
    asga_jax.measure_scores(model, [X], budget="bops=4bit", rounded_on=[])
  model.last.bias[...] *= jnp.nan
  with pytest.raises(ValueError, match="outputs that are not finite"):
    asga_jax.measure_scores(model, [X], budget="bops=4bit")


def _first_at_2_bits(kind):
  """Give the float network, and it with one operand of `first` at 2 bits."""
  float_model = Net(nnx.Rngs(3))
  float_model.eval()
  bits = {"weight_bits": 32, "activation_bits": 32, f"{kind}_bits": 2}
  rules = [
    asga_jax.Rule("first", **bits),
    asga_jax.Rule(".*", weight_bits=32, activation_bits=32),
  ]
  return float_model, asga_jax.searchable(float_model, X, rules=rules)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_corrected_scores_are_those_of_a_corrected_network(kind):
  model, parts = _searchable(), [X[:6], X[6:]]
  found, plain = (
    asga_jax.measure_scores(
      model, parts, budget="bops=4bit", corrected=corrected, progress=False
    ).scores["kl"]
    for corrected in (True, False)
  )
  float_model, low = _first_at_2_bits(kind)
  expected = np.mean(
    [
      _kl(
        np.asarray(float_model(part), np.float64),
        np.asarray(
          asga_jax.correct_bias(low, [part], reference=float_model)(part),
          np.float64,
        ),
      )
      for part in parts
    ]
  )
  group = getattr(
    asga_jax.measure_scores(
      model, parts, budget="bops=4bit", progress=False
    ).space.choices["first"],
    f"{kind}_group",
  )
  np.testing.assert_allclose(-found[group][0], expected, rtol=2e-3)
  assert abs(plain[group][0] - found[group][0]) > 0.05 * expected


@pytest.mark.slow
def test_rounded_scores_are_those_of_rounded_kernels():
  model = _searchable()
  images = [X[:6], X[6:]]
  found = asga_jax.measure_scores(
    model,
    [X],
    budget="bops=4bit",
    corrected=False,
    rounded_on=images,
    progress=False,
  )
  float_model, low = _first_at_2_bits("weight")
  low = asga_jax.round_weights(low, images)
  expected = _kl(
    np.asarray(float_model(X), np.float64), np.asarray(low(X), np.float64)
  )
  group = found.space.choices["first"].weight_group
  np.testing.assert_allclose(-found.scores["kl"][group][0], expected, rtol=2e-3)
