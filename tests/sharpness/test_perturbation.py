"""Masks, norms and displacements against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax import sharpness
from asga_jax.sharpness import perturbation


@pytest.fixture
def tree():
  rng = np.random.default_rng(0)
  return {
    "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)},
    "norm": {
      "bias": jnp.asarray(rng.normal(size=(4,)), jnp.float32),
      "scale": jnp.asarray(rng.normal(size=(4,)), jnp.float32),
    },
  }


@pytest.mark.parametrize(
  ("mask", "want"),
  [
    (None, [True, True, True]),
    (True, [True, True, True]),
    ({"conv": False, "norm": True}, [False, True, True]),
    ({"conv": True, "norm": {"bias": False, "scale": True}}, [True, False, 1]),
    (
      {"conv": np.True_, "norm": np.False_},
      [True, False, False],
    ),
    (lambda p: jax.tree.map(lambda x: x.ndim == 1, p), [False, True, True]),
    (lambda p: {"conv": True, "norm": False}, [True, False, False]),
  ],
)
def test_mask_spreads_over_the_leaves(tree, mask, want):
  spread = perturbation.resolve_mask(mask, tree)
  assert jax.tree.structure(spread) == jax.tree.structure(tree)
  assert jax.tree.leaves(spread) == want
  picked = perturbation.select(tree, spread)
  leaves = jax.tree.leaves(tree)
  assert len(picked) == sum(want)
  for leaf, position in zip(picked, np.flatnonzero(want), strict=True):
    assert leaf is leaves[position]


@pytest.mark.parametrize(
  ("mask", "message"),
  [
    ({"conv": 1, "norm": True}, r"mask\['conv'\]=1 is not a boolean"),
    (jnp.array(True), "is not a boolean"),
    ({"conv": True}, "nor a prefix"),
    ({"conv": True, "nrom": True}, "nor a prefix"),
    (lambda p: {"conv": "yes", "norm": True}, r"mask\['conv'\]='yes'"),
    (False, "selects no leaf"),
    (lambda p: jax.tree.map(lambda x: x.ndim == 5, p), "selects no leaf"),
  ],
)
def test_a_mask_that_does_not_fit_is_refused(tree, mask, message):
  with pytest.raises(ValueError, match=message):
    perturbation.resolve_mask(mask, tree)


def test_norm_and_inner_product_run_over_all_leaves(tree):
  other = jax.tree.map(lambda x: 2 * x + 1, tree)
  a = np.concatenate([np.ravel(x).astype(float) for x in jax.tree.leaves(tree)])
  np.testing.assert_allclose(
    perturbation.global_norm(tree), np.linalg.norm(a), rtol=1e-6
  )
  np.testing.assert_allclose(
    perturbation.inner_product(tree, other), a @ (2 * a + 1), rtol=1e-6
  )


def test_bfloat16_is_widened_before_it_is_summed():
  # In bfloat16 the sum of ones stops growing at 256.
  ones = jnp.ones((4096,), jnp.bfloat16)
  assert perturbation.global_norm([ones]) == 64.0
  assert perturbation.global_norm([ones]).dtype == jnp.float32


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-20, 1e18, 1e25])
def test_a_norm_of_any_scale_is_seen(scale, tree):
  # Squares of these leave float32.
  scaled = jax.tree.map(lambda x: x * jnp.float32(scale), tree)
  leaves = [np.ravel(x).astype(float) for x in jax.tree.leaves(scaled)]
  wanted = np.linalg.norm(np.concatenate(leaves))
  for norm in (
    perturbation.global_norm,
    jax.jit(perturbation.global_norm),
    lambda x: jax.vmap(perturbation.global_norm)(
      jax.tree.map(lambda leaf: leaf[None], x)
    )[0],
  ):
    np.testing.assert_allclose(float(norm(scaled)), wanted, rtol=1e-5)


def test_norms_of_what_is_not_finite():
  norm = perturbation.global_norm
  assert norm([jnp.array([1.0, jnp.inf])]) == jnp.inf
  assert np.isnan(norm([jnp.array([1.0, jnp.nan])]))
  assert norm([jnp.zeros(3)]) == 0 == norm([])


def test_a_loss_of_tiny_scale_moves_the_weights_as_far():
  params = {"w": jnp.array([3.0, -4.0])}
  found = []
  for scale in (1.0, 1e-28):

    def loss(p, scale=scale):
      return jnp.float32(scale) * jnp.sum(p["w"] ** 2) / 2

    transform = sharpness.sam(rho_max=0.5)
    state = transform.init(params)
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = transform.update(
      grads,
      state,
      params,
      value=value,
      value_and_grad_fn=jax.value_and_grad(loss),
    )
    found.append(np.asarray(updates["w"]) / scale)
  # The gradient at w + 0.5 w / |w|.
  np.testing.assert_allclose(found[0], [3.3, -4.4], rtol=1e-5)
  np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_double_precision_is_kept():
  with jax.enable_x64(True):
    tree = [jnp.full((2,), 1 + 1e-12), jnp.zeros((2,), jnp.float32)]
    got = perturbation.inner_product(tree, tree)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(float(got) - 2, 4e-12, rtol=1e-3)


@pytest.mark.parametrize(
  ("norm", "rho", "align", "cap", "coefficient", "align_used"),
  [
    (2.0, 0.05, 1e-3, True, 0.025 - 1e-3, 1e-3),
    (2.0, 0.05, 1e-3, False, 0.025 - 1e-3, 1e-3),
    (100.0, 0.05, 1e-3, True, 2.5e-4, 2.5e-4),
    (100.0, 0.05, 1e-3, False, 5e-4 - 1e-3, 1e-3),
    (2.0, 0.05, 0.0, True, 0.025, 0.0),
    (0.0, 0.05, 1e-3, True, 0.0, 1e-3),
    (0.0, 0.05, 1e-3, False, 0.0, 1e-3),
  ],
)
def test_step_coefficient(norm, rho, align, cap, coefficient, align_used):
  got = perturbation.step_coefficient(
    jnp.float32(norm), jnp.float32(rho), align, cap_align=cap
  )
  np.testing.assert_allclose(got, (coefficient, align_used), rtol=1e-5)


def test_displacement_has_the_length_of_the_radius(tree):
  grads = jax.tree.map(lambda x: jnp.cos(x), tree)
  mask = {"conv": {"kernel": True}, "norm": {"bias": False, "scale": True}}
  norm = perturbation.global_norm(perturbation.select(grads, mask))
  coefficient, _ = perturbation.step_coefficient(
    norm, jnp.float32(0.3), 0.0, cap_align=True
  )
  moved = perturbation.displace(tree, grads, coefficient, mask)
  change = jax.tree.map(lambda a, b: np.asarray(a - b), moved, tree)
  assert np.array_equal(moved["norm"]["bias"], tree["norm"]["bias"])
  length = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(change)))
  np.testing.assert_allclose(length, 0.3, rtol=1e-5)
  kernel = grads["conv"]["kernel"]
  np.testing.assert_allclose(
    change["conv"]["kernel"], 0.3 * kernel / norm, rtol=1e-4, atol=1e-6
  )


def test_bfloat16_leaves_are_moved_in_float32():
  rng = np.random.default_rng(1)
  params = jnp.asarray(rng.normal(size=(200,)), jnp.bfloat16)
  grads = jnp.asarray(rng.normal(size=(200,)), jnp.bfloat16)
  coefficient = jnp.float32(0.0123)
  (moved,) = perturbation.displace([params], [grads], coefficient, [True])
  exact = np.asarray(params, np.float32) + np.float32(0.0123) * np.asarray(
    grads, np.float32
  )
  assert moved.dtype == jnp.float32
  np.testing.assert_allclose(moved, exact, rtol=1e-6)
  # In bfloat16 it would be another result, so the test can fail.
  assert not np.array_equal(moved, moved.astype(jnp.bfloat16))
