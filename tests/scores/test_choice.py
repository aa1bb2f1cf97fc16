"""The choice by measurement, against every policy of a small network."""

import itertools

import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.scores import choice

X = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
BITS = (2, 3, 4)


class Net(nnx.Module):
  """Three layers in a row."""

  def __init__(self, rngs):
    self.first = nnx.Linear(6, 8, rngs=rngs)
    self.middle = nnx.Linear(8, 8, rngs=rngs)
    self.last = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, x):
    return 4 * self.last(nnx.relu(self.middle(nnx.relu(self.first(x)))))


@pytest.fixture(scope="module")
def measured():
  rules = [asga_jax.Rule(".*", weight_bits=BITS, activation_bits=4)]
  net = Net(nnx.Rngs(1))
  model = asga_jax.searchable(net, X, bits=BITS, rules=rules)
  found = asga_jax.measure_scores(
    model, [X], budget="size=3bit", progress=False
  )
  return net, model, found


def _divergence(net, model, policy):
  fixed = asga_jax.with_policy(model, policy)
  fixed = asga_jax.correct_bias(fixed, [X], reference=net)
  wanted, got = (
    x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    for x in (np.asarray(m(X), np.float64) for m in (net, fixed))
  )
  return np.mean(np.sum(np.exp(wanted) * (wanted - got), axis=-1))


@pytest.mark.slow
def test_it_finds_a_policy_that_measures_better(measured):
  net, model, found = measured
  # From the worst policy within the budget, by scores turned upside down.
  poor = asga_jax.allocate(found)
  sizes = {name: p.weights for name, p in poor.layers.items()}
  limit = 3 * sum(sizes.values())
  better = asga_jax.improve_policy(found, poor, [X], progress=False)
  values = {}
  for bits in itertools.product(BITS, repeat=3):
    given = dict(zip(sizes, bits, strict=True))
    if sum(sizes[name] * given[name] for name in sizes) <= limit:
      policy = _at(poor, given)
      values[bits] = _divergence(net, model, policy)
  chosen = tuple(better.layers[name].weight_bits for name in sizes)
  provenance = better.provenance
  np.testing.assert_allclose(
    provenance["divergence"], values[chosen], rtol=1e-3
  )
  assert provenance["divergence"] <= provenance["divergence_before"]
  # The brute force over all policies finds none that is a tenth better.
  assert values[chosen] <= 1.1 * min(values.values())
  assert better.budget == poor.budget
  assert better.cost["budget_used"] <= 1


def _at(policy, bits):
  import dataclasses

  layers = {
    name: dataclasses.replace(layer, weight_bits=bits[name])
    for name, layer in policy.layers.items()
  }
  return dataclasses.replace(policy, layers=layers)


def test_no_more_policies_are_measured_than_asked(measured):
  _, _, found = measured
  policy = asga_jax.allocate(found)
  same = asga_jax.improve_policy(
    found, policy, [X], evaluations=3, progress=False
  )
  assert same.layers == policy.layers
  assert same.provenance["evaluations"] == 1


def test_local_scores_by_hand():
  before = {"a": np.array([8.0, 4.0, 1.0, 0.0]), "b": np.array([3.0, 3.0])}
  widths = {"a": (2, 3, 4, 8), "b": (2, 4)}
  bits = {"a": 2, "b": 0}
  around = {("a", 1): 6.0, ("a", 3): -0.5, ("b", 1): -0.25}
  found = choice.local_scores(bits, before, around, widths)
  # At 3 bits as measured; at 2 in the proportion 6 to 3 of 8 - 1.
  np.testing.assert_allclose(found["a"], [14.0, 6.0, 0.0, -0.5])
  np.testing.assert_allclose(found["b"], [0.0, -0.25])
  # Fewer bits that seem better are no better.
  noisy = choice.local_scores(
    bits, before, {("a", 1): -1.0, ("a", 3): 2.0}, widths
  )
  np.testing.assert_allclose(noisy["a"], [0, 0, 0, 0])


def test_what_it_is_given_is_checked(measured):
  _, _, found = measured
  policy = asga_jax.allocate(found)
  with pytest.raises(ValueError, match="batches is empty"):
    asga_jax.improve_policy(found, policy, [])
  with pytest.raises(ValueError, match="has 8 bits for"):
    asga_jax.improve_policy(
      found, _at(policy, dict.fromkeys(policy.layers, 8)), [X]
    )
