"""The combinations of two gradients against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax.sharpness import alignment, perturbation


def pair(seed=0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  shapes = {"a": (4, 3), "b": (5,), "c": (2,)}

  def draw():
    return {
      k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()
    }

  return draw(), draw()


def flat(tree):
  return np.concatenate(
    [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
  )


ALL = {"a": True, "b": True, "c": True}
SOME = {"a": True, "b": True, "c": False}


@pytest.mark.parametrize("seed", range(3))
def test_orthogonal_component_is_orthogonal_and_the_rest_parallel(seed):
  g, r = pair(seed)
  part = flat(alignment.orthogonal_component(g, r, ALL))
  u = flat(r) / np.linalg.norm(flat(r))
  assert abs(part @ u) < 1e-6 * np.linalg.norm(flat(g))
  rest = flat(g) - part
  np.testing.assert_allclose(rest, (flat(g) @ u) * u, atol=1e-6)


def test_gsam_subtracts_a_share_of_the_orthogonal_component():
  g, r = pair()
  u = flat(r) / np.linalg.norm(flat(r))
  want = flat(r) - 0.3 * (flat(g) - (flat(g) @ u) * u)
  got = flat(alignment.gsam_gradient(g, r, 0.3, ALL))
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_gsam_projects_over_the_perturbed_leaves_alone():
  g, r = pair()
  got = alignment.gsam_gradient(g, r, 0.3, SOME)
  inside = alignment.gsam_gradient(
    *({k: x[k] for k in ("a", "b")} for x in (g, r)), 0.3, {"a": 1, "b": 1}
  )
  assert np.array_equal(got["c"], r["c"])
  for name in ("a", "b"):
    np.testing.assert_allclose(got[name], inside[name], atol=1e-6)


def test_gsam_returns_a_zero_perturbed_gradient_as_it_is():
  g, _ = pair()
  zero = jax.tree.map(jnp.zeros_like, g)
  assert np.array_equal(
    flat(alignment.gsam_gradient(g, zero, 0.3, ALL)), 0 * flat(g)
  )


def test_mean_and_perturbed_gradient():
  g, r = pair()
  want = (flat(g) + flat(r)) / 2
  np.testing.assert_allclose(
    flat(alignment.mean_gradient(g, r)), want, atol=1e-6
  )
  assert np.array_equal(flat(alignment.perturbed_gradient(g, r)), flat(r))


@pytest.mark.parametrize("name", ["mean", "perturbed", "gsam"])
def test_combinations_keep_each_leaf_s_dtype(name):
  g, r = pair(dtype=jnp.bfloat16)
  g["b"] = g["b"].astype(jnp.float32)
  combine = {
    "mean": alignment.mean_gradient,
    "perturbed": alignment.perturbed_gradient,
    "gsam": lambda g, r: alignment.gsam_gradient(g, r, 0.1, SOME),
  }[name]
  got = combine(g, r)
  assert {k: v.dtype for k, v in got.items()} == {
    k: v.dtype for k, v in g.items()
  }


def test_cosine():
  g, r = pair()
  norm, other = perturbation.global_norm(g), perturbation.global_norm(r)
  inner = perturbation.inner_product(g, r)
  want = flat(g) @ flat(r) / np.linalg.norm(flat(g)) / np.linalg.norm(flat(r))
  np.testing.assert_allclose(
    alignment.cosine(inner, norm, other), want, rtol=1e-5
  )
  zero = jnp.zeros(())
  assert alignment.cosine(zero, zero, other) == 0
  assert alignment.cosine(zero, norm, zero) == 0
