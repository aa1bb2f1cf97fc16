"""Scores from gradients and of sharpness, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.network import examples
from asga_jax.quantization import layers
from asga_jax.scores import gradients

X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
BITS = (2, 3, 8)


class Linear(nnx.Module):
  """One layer, whose output is the logits."""

  def __init__(self, rngs):
    self.only = nnx.Linear(6, 4, rngs=rngs)

  def __call__(self, x):
    return 2 * self.only(x)


@pytest.fixture(scope="module")
def searchable():
  rules = [asga_jax.Rule(".*", weight_bits=BITS, activation_bits=BITS)]
  return asga_jax.searchable(Linear(nnx.Rngs(0)), X, bits=BITS, rules=rules)


def _rounded(x, choice, index):
  step = np.asarray(choice.steps())[index]
  lower, upper = (np.asarray(c)[index] for c in choice.grids()[:2])
  return step * np.clip(np.rint(np.asarray(x) / step), lower, upper)


@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_all_three_are_their_closed_forms(searchable, kind):
  found = asga_jax.measure_scores(
    searchable, [X[:8], X[8:]], budget="bops=4bit", score="hessian"
  )
  assert set(found.scores) == set(gradients.SCORES)
  group = getattr(found.space.choices["only"], f"{kind}_group")
  given = [examples.as_example(part) for part in (X[:8], X[8:])]
  many = gradients.measure(
    searchable, found.space, given, draws=1500, progress=False
  )
  product = layers.quantized_layers(searchable)["only"]
  kernel = np.asarray(searchable.only.kernel[...], np.float64)
  logits = 2 * (X @ kernel)
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  for index in range(len(BITS)):
    if kind == "weight":
      moved = _rounded(kernel, product.weight, index) - kernel
      change = 2 * (X @ moved)
      # Of the kernel's Hessian: sum over examples of x^2 p (1 - p).
      diagonal = np.einsum("ni,nk->ik", X**2, 4 * p * (1 - p))
    else:
      moved = _rounded(X, product.activation, index) - X
      change = 2 * (moved @ kernel)
      fisher = np.einsum("ik,nk->ni", kernel**2, p)
      fisher -= (p @ kernel.T) ** 2
      diagonal = 4 * fisher
    expected = {
      "loss_gradient": (
        np.sum(p * change**2, 1) - np.sum(p * change, 1) ** 2
      ).mean()
      / 2,
      "output_gradient": np.sum(p * (1 - p) * change**2) / 2 / len(X),
      "hessian": diagonal.mean() * np.sum(moved**2) / 2 / len(X),
    }
    for score, value in expected.items():
      tolerance = 0.2 if score == "hessian" else 0.06
      np.testing.assert_allclose(
        many[score][group][index], value, rtol=tolerance, err_msg=score
      )


@pytest.mark.slow
def test_the_fisher_estimate_is_the_divergence_where_it_is_small(searchable):
  kl = asga_jax.measure_scores(
    searchable, [X], budget="bops=4bit", corrected=False, progress=False
  )
  given = [examples.as_example(X)]
  found = gradients.measure(
    searchable, kl.space, given, draws=400, progress=False
  )
  for group, values in kl.scores["kl"].items():
    np.testing.assert_allclose(
      found["loss_gradient"][group][2], -values[2], rtol=0.15
    )


@pytest.mark.slow
def test_attention_and_layers_called_twice_have_scores():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.attend = nnx.MultiHeadAttention(
        2, 8, decode=False, rngs=rngs, qkv_features=8
      )
      self.twice = nnx.Linear(8, 8, rngs=rngs)
      self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
      x = self.twice(nnx.relu(self.twice(self.attend(x))))
      return self.last(x).mean(axis=1)

  x = np.random.default_rng(1).normal(size=(4, 5, 8)).astype(np.float32)
  model = asga_jax.searchable(
    Net(nnx.Rngs(0)),
    x,
    bits=(2, 8),
    rules=[asga_jax.Rule(".*(qk|pv)", products=True)],
  )
  found = asga_jax.measure_scores(
    model, [x], budget="bops=4bit", score="loss_gradient", progress=False
  )
  for groups in found.scores.values():
    for values in groups.values():
      assert np.isfinite(values).all()
      if len(values) == 2:
        assert values[0] < values[1] <= 0
  assert any("attend" in group for group in found.scores["hessian"])


@pytest.mark.slow
def test_sharp_scores_are_measured_at_the_ascent(searchable):
  radius = 0.3
  found = asga_jax.measure_scores(
    searchable,
    [X],
    budget="bops=4bit",
    score="sharp_kl",
    radius=radius,
    corrected=False,
    progress=False,
  )
  group = found.space.choices["only"].activation_group
  product = layers.quantized_layers(searchable)["only"]
  kernel, bias = searchable.only.kernel[...], searchable.only.bias[...]
  x = _rounded(X, product.activation, 0)
  wanted = jax.nn.log_softmax(2 * (X @ kernel + bias))

  def divergence(weights):
    got = jax.nn.log_softmax(2 * (x @ weights[0] + weights[1]))
    return jnp.sum(jnp.exp(wanted) * (wanted - got), axis=-1).mean()

  slopes = jax.grad(divergence)((kernel, bias))
  norm = jnp.sqrt(sum(jnp.sum(g**2) for g in slopes))
  moved = [
    w + radius * g / norm for w, g in zip((kernel, bias), slopes, strict=True)
  ]
  np.testing.assert_allclose(
    -found.scores["sharp_kl"][group][0], divergence(moved), rtol=1e-3
  )
  assert divergence(moved) > divergence((kernel, bias))


def test_what_it_is_given_is_checked(searchable):
  with pytest.raises(ValueError, match="score='fisher'; expected one of 'kl'"):
    asga_jax.measure_scores(searchable, [X], budget="bops=4bit", score="fisher")
  with pytest.raises(ValueError, match="radius=0; expected a number > 0"):
    asga_jax.measure_scores(
      searchable, [X], budget="bops=4bit", score="sharp_kl", radius=0
    )
  with pytest.raises(ValueError, match="rounded_on is given with score='sharp"):
    asga_jax.measure_scores(
      searchable, [X], budget="bops=4bit", score="sharp_kl", rounded_on=[X]
    )
