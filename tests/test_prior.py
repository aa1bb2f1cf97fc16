"""Searches that start from measured scores."""

import dataclasses

import jax
import numpy as np
import pytest

import asga_jax


@pytest.fixture(scope="module")
def prior(perceptron, tiny_batches):
  return asga_jax.measure_scores(
    perceptron,
    [tiny_batches[0]["image"]],
    budget="bops=4bit",
    progress=False,
  )


@pytest.mark.slow
def test_logits_that_stay_choose_what_the_prior_chooses(
  perceptron, tiny_batches, prior
):
  found = asga_jax.search_policy(
    perceptron,
    tiny_batches,
    budget="bops=4bit",
    prior=prior,
    settings=asga_jax.SearchSettings(
      steps=2, logit_learning_rate=0.0, score="log_prob"
    ),
    progress=False,
  )
  for group, values in prior.scores["kl"].items():
    expected = jax.nn.log_softmax(np.float32(30 / 0.3) * values)
    np.testing.assert_allclose(
      found.scores["log_prob"][group], expected, rtol=1e-3, atol=1e-3
    )
  chosen, wanted = asga_jax.allocate(found), asga_jax.allocate(prior)
  assert chosen.layers == wanted.layers


@pytest.mark.slow
def test_the_mixture_starts_within_the_budget(perceptron, tiny_batches, prior):
  settings = asga_jax.SearchSettings(steps=4, logit_learning_rate=0.0)
  used = []
  for given in (None, prior):
    search = asga_jax.start_search(
      perceptron, budget="bops=3bit", prior=given, settings=settings
    )
    _, figures = search.step(search.state, tiny_batches[0])
    used.append(float(figures["expected_use"]))
  assert used[0] > 1.05
  assert used[1] <= 1.02


def test_a_strength_without_a_prior_is_told(perceptron):
  settings = asga_jax.SearchSettings(prior_strength=3.0)
  with pytest.raises(ValueError, match=r"prior_strength=3\.0 and no prior"):
    asga_jax.start_search(perceptron, budget="bops=4bit", settings=settings)


def test_a_prior_of_another_network_is_told(perceptron, prior):
  scores = dict(list(prior.scores["kl"].items())[1:])
  other = dataclasses.replace(prior, scores={"kl": scores})
  with pytest.raises(ValueError, match=r"prior has scores of .* tensors"):
    asga_jax.start_search(perceptron, budget="bops=4bit", prior=other)
