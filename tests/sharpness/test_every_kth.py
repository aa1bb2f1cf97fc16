"""Second passes at every k-th step alone: what the steps between report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax import sharpness

A = np.diag([3.0, 1.0, 0.25])
START = np.array([1.0, -2.0, 4.0])
RATE = 0.1
OF_SECOND_PASS = (
  "raw_gap",
  "radius",
  "cosine",
  "perturbed_value",
  "perturbed_gradient_norm",
)


def loss(params):
  return 0.5 * params @ jnp.asarray(A, jnp.float32) @ params


@pytest.mark.slow
def test_second_passes_at_every_third_step_alone():
  fn = jax.value_and_grad(loss)
  calls = []

  def counted(params):
    jax.debug.callback(lambda: calls.append(1))
    return fn(params)

  def run(every):
    tx = sharpness.asga_transform(ascent_every=every, gap_ema=0.5)

    @jax.jit
    def step(params, state):
      value, grads = fn(params)
      updates, state = tx.update(
        grads, state, params, value=value, value_and_grad_fn=counted
      )
      return params - RATE * updates, state, updates

    params, found = jnp.asarray(START, jnp.float32), []
    state = tx.init(params)
    for _ in range(7):
      before, old = params, state
      params, state, updates = step(params, state)
      found.append((before, old, updates, state))
    jax.effects_barrier()
    return found

  found = run(3)
  assert len(calls) == 3
  radii: list[float] = []
  every_step = sharpness.asga_transform(gap_ema=0.5)
  for index, (params, old, updates, new) in enumerate(found):
    value, grads = fn(params)
    if index % 3 == 0:
      want, state = every_step.update(
        grads, old, params, value=value, value_and_grad_fn=fn
      )
      np.testing.assert_allclose(updates, want, rtol=1e-6)
      for left, right in zip(state[:-1], new[:-1], strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)
      radii.append(float(new.radius))
    else:
      np.testing.assert_array_equal(updates, grads)
      assert (new.gap, new.gaps_seen) == (old.gap, old.gaps_seen)
      assert (new.coefficient, new.value) == (0, value)
      norm = np.linalg.norm(grads)
      np.testing.assert_allclose(new.gradient_norm, norm, rtol=1e-6)
      assert all(np.isnan(getattr(new, name)) for name in OF_SECOND_PASS)
  # The gap goes over the skipped steps into the next radius.
  assert len(set(radii)) == 3
  assert [int(new.gaps_seen) for *_, new in found] == [1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("every", [1, 2])
def test_a_look_at_the_displaced_point(every):
  fn = jax.value_and_grad(loss)
  tx = sharpness.asga_transform(ascent_every=every, align=0.0)
  params = jnp.asarray(START, jnp.float32)
  state, lengths = tx.init(params), []

  @jax.jit
  def step(params, state):
    value, grads = fn(params)
    return tx.update_and_look(
      grads,
      state,
      params,
      value=value,
      value_and_grad_fn=fn,
      look=lambda point: {"length": jnp.linalg.norm(point - params)},
    )

  for _ in range(2):
    radius = 0.05 if not lengths else min(0.05, 2e-3 / np.log1p(state.gap))
    updates, state, seen = step(params, state)
    lengths.append(seen["length"])
    if every == 1 or len(lengths) == 1:
      np.testing.assert_allclose(lengths[-1], radius, rtol=1e-4)
    else:
      assert np.isnan(lengths[-1])
      np.testing.assert_array_equal(updates, fn(params)[1])


@pytest.mark.parametrize(
  "tx",
  [sharpness.preset("sgd"), sharpness.asga_transform(ascent="previous")],
  ids=["plain", "one pass"],
)
def test_there_is_nothing_to_look_at_without_a_second_pass(tx):
  params = jnp.ones(2)
  _, _, seen = tx.update_and_look(
    params, tx.init(params), params, value=1.0, look=lambda point: 1.0
  )
  assert seen is None


def test_a_look_is_no_argument_of_update():
  tx = sharpness.asga_transform()
  params = jnp.ones(2)
  fn = jax.value_and_grad(lambda p: jnp.sum(p**2))
  value, grads = fn(params)
  assert (
    len(
      tx.update(
        grads,
        tx.init(params),
        params,
        value=value,
        value_and_grad_fn=fn,
        look=3,
      )
    )
    == 2
  )
