"""Scores fitted to whole policies, against known sums and every policy."""

import dataclasses
import itertools

import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.scores import additive, fitted

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
BITS = (4, 2, 3)


class Net(nnx.Module):
  """Three layers in a row, with a norm."""

  def __init__(self, rngs):
    self.first = nnx.Linear(6, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.middle = nnx.Linear(8, 8, rngs=rngs)
    self.last = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.first(x)))
    return 4 * self.last(nnx.relu(self.middle(x)))


@pytest.fixture(scope="module")
def measured():
  net = Net(nnx.Rngs(1))
  net.train()
  labels = np.asarray(net(X)).argmax(axis=-1)
  net.eval()
  rules = [asga_jax.Rule(".*", weight_bits=BITS, activation_bits=4)]
  model = asga_jax.searchable(net, X, bits=BITS, rules=rules)
  found = asga_jax.measure_scores(
    model, [X], budget="size=3bit", progress=False
  )
  batch = {"image": X, "label": labels}
  return found, batch, asga_jax.fit_scores(found, [batch], progress=False)


def _policies(policy, limit):
  names = list(policy.layers)
  for bits in itertools.product(BITS, repeat=len(names)):
    layers = {
      name: dataclasses.replace(policy.layers[name], weight_bits=b)
      for name, b in zip(names, bits, strict=True)
    }
    if sum(x.weights * x.weight_bits for x in layers.values()) <= limit:
      yield dataclasses.replace(policy, layers=layers)


def _loss(model, policy, batch):
  fixed = asga_jax.with_policy(model, policy)
  # With the statistics of the batch, as a network in training.
  fixed.train()
  logits = np.asarray(fixed(batch["image"]), np.float64)
  logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
  return -logits[np.arange(len(logits)), batch["label"]].mean()


def test_the_policy_is_nearly_the_best_of_all(measured):
  found, batch, result = measured
  policy = asga_jax.allocate(result)
  limit = 3 * sum(x.weights for x in policy.layers.values())
  losses = sorted(
    _loss(found.model, each, batch) for each in _policies(policy, limit)
  )
  chosen = _loss(found.model, policy, batch)
  assert len(losses) > 10
  assert chosen <= losses[0] + 0.1 * (losses[-1] - losses[0])


def test_scores_never_fall_with_the_bits(measured):
  found, _, result = measured
  assert set(result.scores) == {"fitted", "kl"}
  assert result.score == "fitted"
  for group, bits in found.space.widths.items():
    ordered = result.scores["fitted"][group][np.argsort(bits)]
    assert ordered[0] == 0
    assert (np.diff(ordered) >= 0).all()
  assert 0.5 < result.provenance["fitted_share"] <= 1


def test_known_sums_are_found():
  rng = np.random.default_rng(3)
  widths = {"a": (2, 3, 8), "b": (8, 4, 2), "c": (2, 4)}
  gains = {"a": (0, 0.3, 0.4), "b": (0.5, 0.5, 0), "c": (0, 0.1)}
  drawn = [
    {g: int(rng.integers(len(bits))) for g, bits in widths.items()}
    for _ in range(200)
  ]
  losses = np.array([2 - sum(gains[g][i] for g, i in d.items()) for d in drawn])
  found, share = additive.fit(widths, drawn, losses)
  assert share > 0.99
  for group, values in gains.items():
    np.testing.assert_allclose(found[group], values, atol=0.01)


def test_noise_predicts_nothing():
  rng = np.random.default_rng(4)
  widths = {str(i): (2, 3, 4) for i in range(20)}
  drawn = [{g: int(rng.integers(3)) for g in widths} for _ in range(120)]
  _, share = additive.fit(widths, drawn, rng.normal(size=120))
  assert share < 0.1


def test_equal_losses_score_nothing():
  drawn = [{"a": i % 2} for i in range(20)]
  found, share = additive.fit({"a": (2, 3)}, drawn, np.full(20, 0.7))
  assert share == 0
  np.testing.assert_allclose(found["a"], 0, atol=1e-9)


def test_draws_cost_the_budget_in_the_mean(measured):
  found, _, _ = measured
  rates = fitted.draw_rates(found)
  sizes = {x.path: x.weights for x in found.space.network.layers}
  mean = sum(
    sizes[path] * float(np.dot(choice.weight_bits, rates[choice.weight_group]))
    for path, choice in found.space.choices.items()
  )
  np.testing.assert_allclose(mean, 3 * sum(sizes.values()), rtol=1e-3)


def test_nothing_to_choose_and_broken_losses_are_errors(measured):
  found, batch, _ = measured
  with pytest.raises(ValueError, match=r"batches is empty"):
    asga_jax.fit_scores(found, [])
  broken = {**batch, "image": np.full_like(X, np.nan)}
  with pytest.raises(ValueError, match=r"has the loss nan"):
    asga_jax.fit_scores(found, [broken], progress=False)
  rules = [asga_jax.Rule(".*", weight_bits=4, activation_bits=4)]
  model = asga_jax.searchable(Net(nnx.Rngs(1)), X, rules=rules)
  fixed = asga_jax.measure_scores(
    model, [X], budget="size=4bit", progress=False
  )
  with pytest.raises(ValueError, match="one candidate"):
    asga_jax.fit_scores(fixed, [batch])


def test_a_file_of_fewer_policies_is_told(measured, tmp_path):
  found, batch, _ = measured
  path = tmp_path / "losses.json"
  made = asga_jax.fit_scores(
    found, [batch], policies=20, cache=path, progress=False
  )
  again = fitted.read_scores(found, path, policies=20)
  assert again.provenance == made.provenance
  with pytest.raises(ValueError, match="not hold the losses of 21 policies"):
    fitted.read_scores(found, path, policies=21)
  with pytest.raises(ValueError, match="other inputs"):
    asga_jax.fit_scores(found, [batch, batch], policies=20, cache=path)
