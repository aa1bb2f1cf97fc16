"""What predicts transfer, on cases known by hand."""

import types

import jax
import numpy as np
import pytest
from flax import nnx

from asga_jax.evidence import pairs, predictors


def _pair(network, proxy, real, **predicted):
  known = dict.fromkeys(pairs.PREDICTORS, 0.0) | predicted
  return {
    "network": network, "proxy": proxy, "target": "t", "agreement": real,
    "top1": -real, **known,
  }  # fmt: skip


def test_predictors_are_ranked_by_spearman():
  given = [
    _pair("n", f"p{i}", float(i), score=float(np.exp(i)), features=-float(i))
    for i in range(6)
  ]
  found = {x["predictor"]: x for x in pairs.correlate(given)}
  assert found["score"]["correlation"][0] == pytest.approx(1)
  assert found["features"]["correlation"][0] == pytest.approx(-1)
  assert np.isnan(found["measured"]["correlation"][0])
  assert {(x["pairs"], x["clusters"]) for x in found.values()} == {(6, 6)}
  other = {x["predictor"]: x for x in pairs.correlate(given, "top1")}
  assert other["score"]["correlation"][0] == pytest.approx(-1)


def test_what_a_proxy_shares_is_resampled_together():
  draw = np.random.default_rng(0)
  real, noise = draw.normal(size=(2, 40))
  alone = [
    _pair("n", str(i), x, score=x + 2 * y)
    for i, (x, y) in enumerate(zip(real, noise, strict=True))
  ]
  # Ten pairs each of four proxies: their errors are no longer independent.
  four = [pair | {"proxy": str(i // 10)} for i, pair in enumerate(alone)]
  (one,), (other,) = (
    [x for x in pairs.correlate(given) if x["predictor"] == "score"]
    for given in (alone, four)
  )
  assert one["correlation"][0] == other["correlation"][0]
  assert (one["clusters"], other["clusters"]) == (40, 4)
  low, high = one["correlation"][1:]
  assert low < one["correlation"][0] < high


def test_no_pairs_predict_nothing():
  assert pairs.correlate([]) == []


def test_distances_are_in_deviations_of_each_feature():
  first = {"mean": [0.0, 5.0, 1.0], "variance": [1.0, 4.0, 0.0]}
  second = {"mean": [3.0, 5.0, 9.0], "variance": [1.0, 4.0, 0.0]}
  # The third never moves; of two, one is three deviations away.
  assert predictors.distance(first, second) == pytest.approx(np.sqrt(9 / 2))
  assert predictors.distance(first, first) == 0


def test_a_group_that_layers_share_scores_once():
  choice = types.SimpleNamespace(
    weight_group="w",
    weight_bits=(2, 4),
    activation_group="a",
    activation_bits=(4, 8),
  )
  tied = types.SimpleNamespace(
    weight_group="v", weight_bits=(2, 4), activation_group="a",
    activation_bits=(4, 8),
  )  # fmt: skip
  scores = {"w": [-3.0, -1.0], "a": [-5.0, -0.5], "v": [-7.0, -2.0]}
  bits = {"first": [4, 8], "second": [2, 8]}
  found = predictors.score_of(bits, scores, {"first": choice, "second": tied})
  assert found == pytest.approx(-1.0 - 0.5 - 7.0)


class _Network(nnx.Module):
  def __init__(self):
    self.inner = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    self.head = nnx.Linear(4, 2, rngs=nnx.Rngs(1))

  def __call__(self, x):
    return self.head(nnx.relu(self.inner(x)))


@pytest.mark.slow
def test_features_are_what_the_last_layer_reads_and_fits_are_to_float():
  x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
  network = _Network()
  network.eval()
  bench = types.SimpleNamespace(
    reference=network, batches=lambda proxy, count=0: [x]
  )
  found = predictors.features(bench, "p")
  read = np.maximum(x @ network.inner.kernel[...] + network.inner.bias[...], 0)
  np.testing.assert_allclose(found["mean"], read.mean(0), rtol=1e-5)
  np.testing.assert_allclose(
    found["variance"], read.var(0), rtol=1e-4, atol=1e-7
  )
  same = predictors.fit(bench, "p", network)
  assert same == {"agreement": 1.0, "divergence": pytest.approx(0, abs=1e-6)}
  other = nnx.clone(network)
  other.head.kernel[...] = -network.head.kernel[...]
  logits = [jax.nn.log_softmax(m(x)) for m in (network, other)]
  apart = np.sum(np.exp(logits[0]) * (logits[0] - logits[1]), axis=1).mean()
  moved = predictors.fit(bench, "p", other)
  assert moved["divergence"] == pytest.approx(float(apart), rel=1e-4)
  assert moved["agreement"] < 1
