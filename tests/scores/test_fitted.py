"""Scores fitted to whole policies, against known sums and every policy."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax import result as result_lib
from asga_jax.scores import additive, fitted

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
BITS = (4, 2, 3)


class Net(nnx.Module):
  """Three layers and a norm; the middle one, the largest, hardly matters."""

  def __init__(self, rngs):
    self.first = nnx.Linear(6, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.middle = nnx.Linear(8, 8, rngs=rngs)
    self.last = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.first(x)))
    return 4 * self.last(x + 0.01 * self.middle(x))


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
  # Else equal bits, which no scores are needed for, would do.
  uniform = _loss(found.model, result_lib.uniform_policy(found), batch)
  assert uniform > losses[0] + 0.1 * (losses[-1] - losses[0])


def test_every_input_counts_the_same(measured):
  found, batch, _ = measured
  cut = [{k: v[a:b] for k, v in batch.items()} for a, b in ((0, 60), (60, 64))]
  fit = functools.partial(
    asga_jax.fit_scores,
    policies=40,
    batch_statistics=False,
    progress=False,
  )
  whole, parts = fit(found, [batch]), fit(found, cut)
  assert max(x.max() for x in whole.scores["fitted"].values()) > 0.01
  for group, values in whole.scores["fitted"].items():
    np.testing.assert_allclose(parts.scores["fitted"][group], values, atol=1e-5)


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


def _fit(found, batches, path, **changes):
  given = {"policies": 20, "cache": path, "progress": False} | changes
  return asga_jax.fit_scores(found, batches, **given)


def test_a_file_is_read_as_it_was_left(measured, tmp_path):
  found, batch, _ = measured
  path = tmp_path / "losses.json"
  made = _fit(found, [batch], path)
  again = fitted.read_scores(found, path)
  assert again.provenance == made.provenance
  for group, values in made.scores["fitted"].items():
    np.testing.assert_array_equal(again.scores["fitted"][group], values)
  # More policies go on from those that are known.
  kept = json.loads(path.read_text())["values"]
  _fit(found, [batch], path, policies=22)
  after = json.loads(path.read_text())["values"]
  assert {name: after[name] for name in ["0", "7", "19"]} == {
    name: kept[name] for name in ["0", "7", "19"]
  }
  del after["fitted"]
  path.write_text(json.dumps({"hash": "", "values": after}))
  with pytest.raises(ValueError, match=r"22 losses and no scores yet"):
    fitted.read_scores(found, path)


@pytest.mark.parametrize(
  "change", ["batches", "prepare", "seed", "batch_statistics", "budget"]
)
def test_a_file_of_other_losses_is_told(measured, tmp_path, change):
  found, batch, _ = measured
  path = tmp_path / "losses.json"
  _fit(found, [batch], path)
  batches, changes = [batch], {}
  if change == "batches":
    batches = [batch, batch]
  elif change == "budget":
    found = dataclasses.replace(found, budget="size=3.5bit")
  else:
    changes[change] = {
      "prepare": lambda _, data: {**data, "image": 0 * data["image"]},
      "seed": 1,
      "batch_statistics": False,
    }[change]
  with pytest.raises(ValueError, match="of other inputs, candidates or sett"):
    _fit(found, batches, path, **changes)


def test_a_file_of_other_policies_is_told(measured, tmp_path):
  found, batch, _ = measured
  path = tmp_path / "losses.json"
  cost = functools.partial(asga_jax.Cost, "mine")

  def of(heavy):
    return dataclasses.replace(
      found,
      budget="mine=230",
      costs=[
        cost(lambda layer, bw, ba: bw * (100 if layer.path == heavy else 1))
      ],
    )

  _fit(of("first"), [batch], path)
  with pytest.raises(ValueError, match="of other bits than those drawn"):
    _fit(of("last"), [batch], path)


def test_norms_use_what_is_asked(measured):
  found, batch, _ = measured
  moved = nnx.clone(found.model)
  moved.norm.mean[...] += 0.5
  moved = dataclasses.replace(found, model=moved)
  of_batch, of_running = (
    [
      _fit(each, [batch], None, batch_statistics=stats).scores["fitted"]
      for each in (found, moved)
    ]
    for stats in (True, False)
  )
  group = "last/weight"
  np.testing.assert_array_equal(of_batch[0][group], of_batch[1][group])
  assert not np.array_equal(of_running[0][group], of_running[1][group])


def test_texts_and_budgets_without_a_choice_are_told(measured):
  found, batch, _ = measured
  with pytest.raises(ValueError, match="expected arrays of numbers"):
    _fit(found, [{**batch, "name": ["a"] * 64}], None)
  least = dataclasses.replace(found, budget="size=2bit")
  with pytest.raises(ValueError, match="that leaves a choice"):
    _fit(least, [batch], None)
