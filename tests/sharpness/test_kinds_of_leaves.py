"""Complex, narrow, whole and no leaves, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asga_jax

TARGET = np.array([1 - 2j, -0.5 + 1j, 2j], np.complex64)
START = np.array([0.3 + 1j, 2 - 1j, 0.5 + 0j], np.complex64)
RHO = 0.1


def _loss(params):
  return jnp.sum(jnp.abs(params["z"] - TARGET) ** 2) + jnp.sum(
    (params["x"] - 1) ** 2
  )


def _update(transform, params, loss=_loss):
  fn = jax.value_and_grad(loss)
  value, grads = fn(params)
  updates, state = transform.update(
    grads,
    transform.init(params),
    params,
    value=value,
    value_and_grad_fn=fn,
  )
  return grads, updates, state


PARAMS = {"z": jnp.asarray(START), "x": jnp.asarray([3.0, -2.0])}
# Of |z - a|^2 + (x - 1)^2: by the real and imaginary parts the gradient is
# twice the difference d, its norm 2 |d|. At θ + ρ d/|d| the difference is
# (1 + ρ/|d|) d, the loss (|d| + ρ)^2, the gradient 2 (1 + ρ/|d|) d.
APART = np.concatenate([START - TARGET, [2, -3]])
LENGTH = np.linalg.norm(APART)


@pytest.mark.parametrize("name", ["sam", "sagm", "gsam", "adaptive"])
def test_a_complex_leaf_is_two_real_ones(name):
  made = {
    "sam": lambda: asga_jax.sam(rho_max=RHO),
    "sagm": lambda: asga_jax.sagm(rho_max=RHO, align=0.0),
    "gsam": lambda: asga_jax.gsam(rho_max=RHO, gsam_alpha=0.3),
    "adaptive": lambda: asga_jax.asga_transform(
      rho_max=RHO, align=0.0, combination="perturbed"
    ),
  }[name]()
  grads, updates, state = _update(made, PARAMS)
  found = asga_jax.diagnostics(state)
  np.testing.assert_allclose(found["gradient_norm"], 2 * LENGTH, rtol=1e-6)
  np.testing.assert_allclose(found["value"], LENGTH**2, rtol=1e-6)
  np.testing.assert_allclose(
    found["perturbed_value"], (LENGTH + RHO) ** 2, rtol=1e-6
  )
  np.testing.assert_allclose(found["cosine"], 1, rtol=1e-6)
  # Parallel gradients: nothing is orthogonal, for GSAM.
  share = 1 + RHO / LENGTH * (0.5 if name == "sagm" else 1)
  assert updates["z"].dtype == jnp.complex64
  for leaf, update in updates.items():
    np.testing.assert_allclose(update, share * grads[leaf], rtol=1e-5)


@pytest.mark.slow
def test_it_is_what_its_real_and_imaginary_parts_give():
  def rugged(params):
    z = params["z"]
    return jnp.sum(jnp.cos(z.real * 2) * z.imag**2 + z.real**3)

  def of_parts(parts):
    return rugged({"z": jax.lax.complex(parts["re"], parts["im"])})

  transform = asga_jax.gsam(rho_max=RHO, gsam_alpha=0.3)
  with (
    jax.numpy_dtype_promotion("strict"),
    jax.numpy_rank_promotion("raise"),
  ):
    _, updates, _ = _update(transform, {"z": PARAMS["z"]}, rugged)
  parts = {"re": PARAMS["z"].real, "im": PARAMS["z"].imag}
  _, wanted, _ = _update(transform, parts, of_parts)
  # JAX's gradient of a complex number is the conjugate of that of its parts.
  want = wanted["re"] - 1j * wanted["im"]
  np.testing.assert_allclose(updates["z"], want, rtol=2e-5, atol=1e-5)


def test_the_point_of_one_pass_rises():
  transform = asga_jax.asga_transform(
    rho_max=RHO, radius="fixed", ascent="previous", align=0.0
  )
  value, grads = jax.value_and_grad(_loss)(PARAMS)
  state = transform.init(PARAMS)
  _, state = transform.update(grads, state, PARAMS, value=value)
  point = asga_jax.ascent_point(state, PARAMS)
  np.testing.assert_allclose(_loss(point), (LENGTH + RHO) ** 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_leaves_are_moved_in_float32(dtype):
  params = {"x": jnp.full(2**16, 3, dtype)}

  def loss(params):
    return jnp.sum(params["x"].astype(jnp.float32) ** 2) / 2

  _, updates, state = _update(asga_jax.sam(rho_max=RHO), params, loss)
  found = asga_jax.diagnostics(state)
  # 2^16 squares of 3 are above what float16 holds.
  np.testing.assert_allclose(found["gradient_norm"], 3 * 2**8, rtol=1e-6)
  want = (3 * 2**8 + RHO) ** 2 / 2
  np.testing.assert_allclose(found["perturbed_value"], want, rtol=1e-6)
  assert updates["x"].dtype == dtype


def test_whole_numbers_and_nothing_stay():
  params = {"x": jnp.asarray([3.0, 4.0]), "n": jnp.arange(3), "none": None}

  def loss(params):
    assert params["n"].dtype == jnp.int32
    return jnp.sum(params["x"] ** 2) / 2 + 0.0 * params["n"].sum()

  fn = jax.value_and_grad(loss, allow_int=True)
  value, grads = fn(params)
  for combination in ("mean", "perturbed", "gsam", "plain"):
    transform = asga_jax.asga_transform(
      rho_max=RHO if combination != "plain" else 0.05, combination=combination
    )
    updates, state = transform.update(
      grads,
      transform.init(params),
      params,
      value=value,
      value_and_grad_fn=fn,
    )
    assert float(state.gradient_norm) == 5
    assert updates["none"] is None
    assert updates["n"].dtype == jax.dtypes.float0


def test_an_empty_tree_has_no_gradient():
  transform = optax.chain(asga_jax.sam(rho_max=RHO), optax.sgd(1.0))
  fn = jax.value_and_grad(lambda params: jnp.float32(2))
  value, grads = fn({})
  updates, _ = transform.update(
    grads, transform.init({}), {}, value=value, value_and_grad_fn=fn
  )
  assert updates == {}
