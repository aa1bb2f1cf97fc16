"""The contract of the transformation, and the edges of the method."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asga_jax import sharpness

CASES = {
  "sgd": {"combination": "plain"},
  "sam": {"radius": "fixed", "align": 0.0, "combination": "perturbed"},
  "gsam": {"radius": "fixed", "align": 0.0, "combination": "gsam"},
  "sagm": {"radius": "fixed", "cap_align": False},
  "asga": {},
  "growing": {"radius": "growing", "rho_min": 0.01},
  "smooth": {"gap_ema": 0.9, "gap_from_gradients": True},
  "schedule": {"rho_max": optax.linear_schedule(0.1, 0.01, 3)},
  "masked": {"mask": {"w": True, "b": False}},
}
all_cases = pytest.mark.parametrize("kwargs", CASES.values(), ids=CASES)


def params_of(dtype=jnp.float32):
  return {
    "w": jnp.asarray([[0.5, -1.0], [2.0, 0.3]], dtype),
    "b": jnp.asarray([0.1, -0.2], jnp.float32),
  }


def loss_fn(params):
  hidden = jnp.tanh(params["w"].astype(jnp.float32) @ jnp.array([1.0, 2.0]))
  return jnp.sum((hidden + params["b"] - 1) ** 2)


class Counted:
  """Counts the calls of a value_and_grad_fn and keeps what it was given."""

  def __init__(self, loss=loss_fn):
    self.calls = []
    self.inner = jax.value_and_grad(loss)

  def __call__(self, params):
    self.calls.append(params)
    return self.inner(params)


def one_step(tx, params, loss=loss_fn, state=None):
  """Return the updates, the state and the displaced parameters, if any."""
  fn = Counted(loss)
  value, grads = fn.inner(params)
  updates, state = tx.update(
    grads,
    tx.init(params) if state is None else state,
    params,
    value=value,
    value_and_grad_fn=fn,
  )
  return updates, state, fn.calls


@all_cases
def test_one_second_pass_no_recompilation_and_a_donated_state(kwargs):
  tx = optax.chain(sharpness.asga_transform(**kwargs), optax.sgd(0.1))
  fn, traces = Counted(), []

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state):
    traces.append(1)
    value, grads = fn.inner(params)
    updates, state = tx.update(
      grads, state, params, value=value, value_and_grad_fn=fn, epoch=3, key=None
    )
    return optax.apply_updates(params, updates), state

  params = params_of()
  state = tx.init(params)
  for _ in range(3):
    params, state = step(params, state)
  assert len(traces) == 1
  assert len(fn.calls) == (0 if kwargs.get("combination") == "plain" else 1)
  state = sharpness.diagnostics(state)
  assert state["count"] == state["gaps_seen"] == 3


def abstract_step(tx, params):
  """Return the shapes and dtypes of what one_step returns, without running."""

  def step(params, state):
    fn = Counted()
    value, grads = fn.inner(params)
    with (
      jax.numpy_dtype_promotion("strict"),
      jax.numpy_rank_promotion("raise"),
    ):
      updates, state = tx.update(
        grads, state, params, value=value,
        value_and_grad_fn=lambda p: (fn.calls.append(p), (value, grads))[1],
      )  # fmt: skip
    return updates, state, fn.calls

  return jax.eval_shape(step, params, tx.init(params))


def test_a_radius_shared_by_many_bfloat16_weights_moves_them():
  # Each moves by 5e-5, and the spacing of bfloat16 at 1 is 8e-3.
  def loss(params):
    return jnp.sum(params["w"].astype(jnp.float32) ** 2) + params["b"][0]

  params = {
    "w": jnp.ones(1_000_000, jnp.bfloat16),
    "b": jnp.ones(2, "bfloat16"),
  }
  mask = {"w": True, "b": False}
  updates, state, calls = one_step(sharpness.sam(mask=mask), params, loss)
  np.testing.assert_allclose(calls[0]["w"], 1 + 5e-5, rtol=1e-7)
  assert calls[0]["b"] is params["b"]
  # ρ‖g‖ + ρ², where float32 resolves a sum of a million to 0.06.
  np.testing.assert_allclose(state.raw_gap, 0.05 * 2000, rtol=2e-3)
  assert updates["w"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_a_function_of_bfloat16_alone_says_that_it_must_take_float32():
  kernel = jnp.ones((1, 1, 3, 3), jnp.bfloat16)

  def loss(params):
    # It asks for one dtype.
    image = jnp.ones((1, 1, 8, 8), jnp.bfloat16)
    return jnp.sum(jax.lax.conv(image, params, (1, 1), "SAME"))

  with pytest.raises(ValueError, match=r"bfloat16 -> float32.*both dtypes"):
    one_step(sharpness.sam(), kernel, loss)

  def cast(params):
    image = jnp.ones((1, 1, 8, 8), params.dtype)
    return jnp.sum(jax.lax.conv(image, params, (1, 1), "SAME"))

  _, state, _ = one_step(sharpness.sam(), kernel, cast)
  assert state.raw_gap > 0


def test_an_error_of_the_function_itself_is_left_alone():
  def loss(params):
    if calls:
      raise ValueError("mine")
    calls.append(1)
    return jnp.sum(params)

  calls = []
  with pytest.raises(ValueError, match=r"^mine"):
    one_step(sharpness.sam(), jnp.ones(2), loss)


@all_cases
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_and_shapes_do_not_change(kwargs, dtype):
  params = params_of(dtype)
  tx = sharpness.asga_transform(**kwargs)
  updates, state, calls = abstract_step(tx, params)
  # The second pass is at perturbed leaves of float32.
  wanted = [params, *([params_of(jnp.float32)] * len(calls))]
  for got, like in zip((updates, *calls), wanted, strict=True):
    assert jax.tree.structure(got) == jax.tree.structure(like)
    for leaf, want in zip(
      jax.tree.leaves(got), jax.tree.leaves(like), strict=True
    ):
      assert (leaf.shape, leaf.dtype) == (want.shape, want.dtype)
  start = tx.init(params)
  assert start.displacement == state.displacement == ()
  for name in sharpness.diagnostics(start):
    want = jnp.int32 if name in ("count", "gaps_seen") else jnp.float32
    for leaf in (getattr(start, name), getattr(state, name)):
      assert (leaf.shape, leaf.dtype, leaf.weak_type) == ((), want, False)


@all_cases
def test_double_precision_parameters_have_a_double_precision_state(kwargs):
  with jax.enable_x64(True):
    tx = sharpness.asga_transform(**kwargs)
    params = params_of(jnp.float64)
    updates, state, _ = abstract_step(tx, params)
    assert tx.init(params).gap.dtype == state.gap.dtype == jnp.float64
    assert updates["w"].dtype == jnp.float64
    assert updates["b"].dtype == jnp.float32
    assert state.count.dtype == jnp.int32


@all_cases
def test_zero_gradient_moves_nothing_and_gives_no_nan(kwargs):
  params = params_of()
  tx = sharpness.asga_transform(**kwargs)
  updates, state, calls = one_step(tx, params, lambda p: 0 * jnp.sum(p["w"]))
  for leaf in jax.tree.leaves((updates, state)):
    assert np.all(np.isfinite(leaf))
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))
  for displaced in calls:
    jax.tree.map(np.testing.assert_array_equal, displaced, params)
  assert state.gap == 0
  assert state.cosine == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("gap_ema", [0.0, 0.9])
def test_a_gap_that_is_not_finite_leaves_the_previous_one(bad, gap_ema):
  params = params_of()
  fn = jax.value_and_grad(loss_fn)
  value, grads = fn(params)
  tx = sharpness.asga_transform(gap_ema=gap_ema, phi=1e-3)

  @jax.jit
  def update(state, loss):
    def second(params):
      found, grads = fn(params)
      return (found if loss is None else loss), grads

    return tx.update(
      grads, state, params, value=value, value_and_grad_fn=second
    )[1]

  spoilt = update(tx.init(params), bad)
  assert spoilt.gap == 0
  assert not np.isfinite(spoilt.raw_gap)
  assert update(spoilt, None).radius == np.float32(0.05)
  good = update(tx.init(params), None)
  after = update(good, bad)
  assert after.gap == good.gap > 0
  assert (after.count, after.gaps_seen) == (2, 1)
  want = min(0.05, 1e-3 / math.log1p(float(good.gap)))
  assert want < 0.05
  np.testing.assert_allclose(update(after, None).radius, want, rtol=1e-6)


def test_a_gap_below_zero_gives_the_largest_radius():
  # Along the gradient of a concave function the loss rises less and less, and
  # past its top it falls: h < 0.
  tx = sharpness.asga_transform(rho_max=3.0, align=0.0, phi=1e-6)
  params = jnp.array([0.1])
  _, state, _ = one_step(tx, params, lambda x: jnp.sum(jnp.cos(x - 0.3)))
  assert state.raw_gap < 0
  _, state, _ = one_step(tx, params, jnp.sum, state=state)
  assert state.radius == 3.0


@pytest.mark.parametrize("cap", [True, False])
def test_a_gradient_longer_than_radius_over_align(cap):
  # L = 100 x: c = ρ/‖g‖ − λ is 5e-4 − 1e-3 uncapped, 2.5e-4 capped.
  tx = sharpness.asga_transform(radius="fixed", cap_align=cap)
  _, state, calls = one_step(tx, jnp.array([1.0]), lambda x: 100 * jnp.sum(x))
  np.testing.assert_allclose(calls[0], [1.025 if cap else 0.95], rtol=1e-6)
  # On a linear loss the λ term restores the gap of the unshifted point, ρ‖g‖.
  np.testing.assert_allclose(state.raw_gap, 5.0, rtol=1e-4)


def test_gap_from_gradients_survives_a_loss_in_bfloat16():
  def coarse(params):
    return (loss_fn(params) + 100).astype(jnp.bfloat16)

  exact = one_step(sharpness.asga_transform(), params_of())[1].raw_gap
  params = params_of()
  grads = jax.grad(loss_fn)(params)
  found = {}
  for flag in (False, True):
    tx = sharpness.asga_transform(gap_from_gradients=flag)
    found[flag] = tx.update(
      grads, tx.init(params), params, value=coarse(params),
      value_and_grad_fn=lambda p: (coarse(p), jax.grad(loss_fn)(p)),
    )[1].raw_gap  # fmt: skip
  np.testing.assert_allclose(found[True], exact, rtol=1e-2)
  assert abs(found[False] - exact) > 0.5 * exact


@pytest.mark.parametrize("name", ["sam", "asga", "gsam"])
def test_unmasked_leaves_stay_but_are_combined(name):
  params, mask = params_of(), {"w": True, "b": False}
  tx = sharpness.preset(name, mask=mask, rho_max=0.5)
  updates, state, calls = one_step(tx, params)
  grads, second = jax.grad(loss_fn)(params), jax.grad(loss_fn)(calls[0])
  assert np.array_equal(calls[0]["b"], params["b"])
  length = np.linalg.norm(calls[0]["w"] - params["w"])
  norm = np.linalg.norm(grads["w"])
  align = 1e-3 if name == "asga" else 0.0
  np.testing.assert_allclose(length, 0.5 - align * norm, rtol=1e-5)
  np.testing.assert_allclose(state.gradient_norm, norm, rtol=1e-6)
  want = second["b"]
  if name == "asga":
    want = (grads["b"] + second["b"]) / 2
  np.testing.assert_allclose(updates["b"], want, rtol=1e-6)
  assert np.abs(second["b"] - grads["b"]).max() > 1e-2


def test_accumulation_inside_the_function_equals_the_full_batch():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(32, 2)), jnp.float32)

  def batch_loss(params, batch):
    return jnp.mean((jnp.tanh(batch @ params["w"]) + params["b"] - 1) ** 2)

  full = jax.value_and_grad(lambda p: batch_loss(p, x))

  def accumulated(params):
    def add(carry, micro):
      new = jax.value_and_grad(batch_loss)(params, micro)
      return jax.tree.map(lambda c, n: c + n / 4, carry, new), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zero, x.reshape(4, 8, 2))[0]

  def run(fn):
    tx = optax.chain(
      sharpness.asga_transform(phi=1e-3), optax.sgd(0.3, momentum=0.9)
    )

    def step(carry, _):
      params, state = carry
      value, grads = fn(params)
      updates, state = tx.update(
        grads, state, params, value=value, value_and_grad_fn=fn
      )
      return (optax.apply_updates(params, updates), state), value

    start = (params_of(), tx.init(params_of()))
    return jax.lax.scan(step, start, length=4)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    run(full),
    run(accumulated),
  )


def test_plain_needs_no_extra_argument_and_returns_the_gradient_itself():
  tx = sharpness.preset("sgd")
  grads = params_of()
  updates, state = tx.update(grads, tx.init(grads))
  assert updates is grads
  assert state.radius == state.gap == 0
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
  np.testing.assert_allclose(state.gradient_norm, norm, rtol=1e-6)
