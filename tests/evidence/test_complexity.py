"""Terms of a PAC-Bayes bound, in closed form for one linear layer."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.evidence import complexity

IMAGES = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)


class _Linear(nnx.Module):
  def __init__(self):
    self.head = nnx.Linear(5, 3, use_bias=False, rngs=nnx.Rngs(0))

  def __call__(self, x):
    return self.head(x)


@pytest.fixture(scope="module")
def both():
  """A float network and itself at 4 bits, and the bench of images."""
  network = _Linear()
  network.eval()
  made = asga_jax.searchable(network, IMAGES, bits=(4,), end_bits=4)
  bench = types.SimpleNamespace(
    reference=network, batches=lambda proxy, count=0: [IMAGES]
  )
  return bench, made


def test_released_kernels_multiply_as_the_quantized_ones(both):
  _, model = both
  found = complexity.released(model)
  np.testing.assert_allclose(found(IMAGES), model(IMAGES), atol=1e-6)
  # What is added to them is not rounded away.
  found.head.kernel[...] += 1e-3
  assert np.abs(np.asarray(found(IMAGES) - model(IMAGES))).max() > 1e-5


@pytest.mark.slow
def test_trace_and_norm_are_the_closed_form(both, monkeypatch):
  bench, model = both
  monkeypatch.setattr(complexity, "_SIGNS", 400)
  found = complexity.measure(bench, "p", model)
  kernel = np.asarray(complexity.released(model).head.kernel[...], np.float64)
  assert found["l2"] == pytest.approx(-(kernel**2).sum(), rel=1e-5)
  read = np.asarray(model.head.dot_general.activation(jnp.asarray(IMAGES)))
  q = np.asarray(jax.nn.softmax(read @ kernel), np.float64)
  # The Hessian of a softmax's divergence: (diag q - q q') times x x'.
  each = (read**2).sum(1) * (1 - (q**2).sum(1))
  want = -np.mean(each) * (kernel**2).mean()
  assert found["trace"] == pytest.approx(want, rel=0.1)


def test_tolerance_is_where_noise_adds_so_much(both, monkeypatch):
  bench, model = both
  # To second order noise adds s^2 tr(H) / 2; this is one draw of 15 weights.
  with monkeypatch.context() as patch:
    patch.setattr(complexity, "_ADDED", 0.005)
    found = complexity.measure(bench, "p", model)
  want = (2 * 0.005 / -found["trace"]) ** 0.5
  assert want / 2 < found["tolerance"] < 2 * want < 0.5
  assert complexity._tolerance(lambda size: size**2) == pytest.approx(
    0.1**0.5, abs=0.5 / 2**7
  )
  assert complexity._tolerance(lambda size: 0.0) == 0.5


def test_policies_are_ranked_within_a_network_and_budget():
  rows = [
    {
      "network": "n", "budget": budget, "agreement": x + shift, "l2": -x,
      "trace": x, "tolerance": 1.0,
    }
    for budget, shift in (("4", 0.0), ("5", 9.0))
    for x in (0.1, 0.2, 0.4)
  ]  # fmt: skip
  found = complexity.correlate(rows)
  assert [x["correlation"] for x in found[:2]] == pytest.approx([-1, 1])
  assert np.isnan(found[2]["correlation"])
  assert {(x["budget"], x["policies"]) for x in found} == {("4", 3), ("5", 3)}
