"""From trained weights to a network at its bits, in one call."""

import jax
import numpy as np
import pytest
from flax import nnx

import asga_jax

X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


class Net(nnx.Module):
  """A norm, and a dictionary of inputs."""

  def __init__(self, rngs):
    self.first = nnx.Linear(6, 16, use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(16, rngs=rngs)
    self.middle = nnx.Linear(16, 16, rngs=rngs)
    self.last = nnx.Linear(16, 5, rngs=rngs)

  def __call__(self, x, scale=1.0):
    x = nnx.relu(self.norm(self.first(x * scale)))
    return self.last(nnx.relu(self.middle(x)))


@pytest.fixture(scope="module")
def net():
  made = Net(nnx.Rngs(0))
  made.norm.var[...] = 0.5 + np.arange(16) / 16
  return made


@pytest.mark.slow
def test_it_is_what_its_parts_give(net, tmp_path):
  batches = [X[:32], X[32:]]
  found = asga_jax.quantize_post_training(
    net, batches, budget="bops=3bit", cache=tmp_path / "scores.json"
  )
  model = asga_jax.searchable(net, X[:32], batches=[X[32:]])
  scores = asga_jax.measure_scores(
    model, [X[:32]], budget="bops=3bit", rounded_on=batches
  )
  policy = asga_jax.allocate(scores)
  assert found.policy.layers == policy.layers
  fixed = asga_jax.with_policy(model, policy)
  fixed = asga_jax.round_weights(fixed, batches)
  fixed = asga_jax.correct_bias(fixed, batches, reference=net)
  np.testing.assert_allclose(found.model(X), fixed(X), rtol=1e-5, atol=1e-5)
  # Another budget from the same scores.
  more = asga_jax.allocate(found.result, budget="bops=6bit")
  assert more.cost["bops"] > policy.cost["bops"]
  # Back in evaluation mode, and exported.
  asga_jax.export_onnx(found.model, (6,), policy=None)


@pytest.mark.slow
def test_named_inputs_and_improvement(net):
  found = asga_jax.quantize_post_training(
    net,
    [{"x": X[:32], "scale": 2.0}, {"x": X[32:], "scale": 2.0}],
    budget="bops=3bit",
    scored=2,
    evaluations=40,
    progress=False,
  )
  provenance = found.policy.provenance
  assert 1 < provenance["evaluations"] <= 40
  assert provenance["divergence"] <= provenance["divergence_before"]
  assert found.policy.cost["budget_used"] <= 1


def test_bad_arguments_are_told(net):
  with pytest.raises(ValueError, match=r"scored=2 of 1 batches"):
    asga_jax.quantize_post_training(net, [X], budget="bops=3bit", scored=2)
  with pytest.raises(ValueError, match="batches is empty"):
    asga_jax.quantize_post_training(net, [], budget="bops=3bit")
  with pytest.raises(ValueError, match="budget"):
    asga_jax.quantize_post_training(net, [X], budget="bops=3bits please")


class Within(nnx.Module):
  """Calls a layer with a bias within a transformation."""

  def __init__(self, how):
    rngs = nnx.Rngs(0)
    self.layer = nnx.Linear(6, 6, rngs=rngs)
    self.last = nnx.Linear(6, 3, rngs=rngs)
    self.how = nnx.static(how)

  def __call__(self, x):
    return self.last(nnx.relu(self.how(self.layer, x)))


def _scanned(layer, x):
  return jax.lax.scan(lambda x, _: (layer(x), None), x, length=2)[0]


HOW = {
  "remat": lambda f, x: nnx.remat(lambda f, x: f(x))(f, x),
  "jit": lambda f, x: nnx.jit(lambda f, x: f(x))(f, x),
  "vmap": lambda f, x: jax.vmap(f)(x),
  "cond": lambda f, x: jax.lax.cond(x.sum() > 9, lambda x: x, f, x),
  "scan": _scanned,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_layers_within_a_transformation(how):
  net = Within(HOW[how])
  made = asga_jax.quantize_post_training(
    net, [X], budget="bops=6bit", evaluations=2, progress=False
  )
  off = np.abs(made.model(X) - net(X)).max() / np.abs(net(X)).max()
  assert off < 0.2
  model = asga_jax.searchable(net, X, bits=(2, 8))
  with pytest.raises(ValueError, match=r"'layer' is called within .*='kl' or"):
    asga_jax.measure_scores(
      model, [X], budget="bops=6bit", score="hessian", progress=False
    )


def test_layers_within_a_transformation_are_measured():
  model = asga_jax.searchable(Within(HOW["remat"]), X, bits=(2, 8), end_bits=8)
  found = asga_jax.measure_scores(
    model, [X], budget="bops=6bit", progress=False
  )
  for values in found.scores["kl"].values():
    assert values[0] <= values[-1] <= 0
  assert min(min(values) for values in found.scores["kl"].values()) < 0
