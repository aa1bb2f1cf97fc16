"""Steps of one gradient, and second passes at every k-th step alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from asga_jax import sharpness

A = np.diag([3.0, 1.0, 0.25])
START = np.array([1.0, -2.0, 4.0])
RATE, RHO_MAX, PHI, ALIGN = 0.1, 0.05, 2e-3, 1e-3


def loss(params):
  return 0.5 * params @ jnp.asarray(A, jnp.float32) @ params


def quadratic_by_hand(decay, steps, ema=0.0):
  """Makes the steps in float64, from the formulas alone."""
  theta, m, gap, seen, found = START, np.zeros(3), 0.0, False, []
  for _ in range(steps):
    norm = np.linalg.norm(m)
    rho = min(RHO_MAX, PHI / np.log1p(gap)) if seen and gap > 0 else RHO_MAX
    c = rho / norm - min(ALIGN, rho / (2 * norm)) if norm else 0.0
    gradient = A @ (theta + c * m)
    raw = rho * m @ gradient / norm if norm else 0.0
    if norm:
      gap, seen = (ema * gap + (1 - ema) * raw if seen else raw), True
    found.append((raw, rho, c, gap))
    theta, m = theta - RATE * gradient, decay * m + (1 - decay) * gradient
  return theta, found


def one_gradient_steps(tx, params, fn, steps):
  state, found = tx.init(params), []

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(fn)(sharpness.ascent_point(state, params))
    updates, state = tx.update(grads, state, params, value=value)
    return optax.apply_updates(params, updates), state

  for _ in range(steps):
    params, state = step(params, state)
    found.append(sharpness.diagnostics(state))
  return params, state, found


@pytest.mark.parametrize("combination", ["mean", "perturbed"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize(
  ("ascent", "decay"), [("previous", 0), ("momentum", 0.9)]
)
def test_a_quadratic_goes_as_the_formulas_say(ascent, decay, ema, combination):
  tx = optax.chain(
    sharpness.asga_transform(
      rho_max=RHO_MAX,
      phi=PHI,
      align=ALIGN,
      ascent=ascent,
      gap_ema=ema,
      combination=combination,
    ),
    optax.sgd(RATE),
  )
  params = jnp.asarray(START, jnp.float32)
  params, _, found = one_gradient_steps(tx, params, loss, 6)
  want, by_hand = quadratic_by_hand(decay, 6, ema)
  np.testing.assert_allclose(params, want, rtol=1e-5)
  for got, (raw, rho, c, gap) in zip(found, by_hand, strict=True):
    np.testing.assert_allclose(
      [got["raw_gap"], got["radius"], got["coefficient"], got["gap"]],
      [raw, rho, c, gap],
      rtol=2e-5,
    )
  # The radius had something to adapt to.
  assert len({round(rho, 6) for _, rho, _, _ in by_hand}) >= 3


def test_on_a_plane_the_estimates_are_exact():
  slope = jnp.array([3.0, -4.0])
  tx = sharpness.asga_transform(rho_max=0.1, ascent="previous", radius="fixed")
  _, _, found = one_gradient_steps(
    tx, jnp.array([1.0, 2.0]), lambda p: slope @ p + 7, 3
  )
  # The params are those after the update, so the loss before it is L.
  params, losses = jnp.array([1.0, 2.0]), []
  for _ in range(3):
    losses.append(float(slope @ params) + 7)
    params = params + slope
  np.testing.assert_allclose([f["value"] for f in found], losses, rtol=1e-6)
  np.testing.assert_allclose(
    [f["raw_gap"] for f in found], [0, 0.5, 0.5], rtol=1e-6
  )
  np.testing.assert_allclose([f["cosine"] for f in found], [0, 1, 1], rtol=1e-6)
  assert [int(f["gaps_seen"]) for f in found] == [0, 1, 2]


def test_masked_leaves_stay_and_hold_no_memory():
  params = {"w": jnp.ones(4), "step": jnp.ones(1000)}
  tx = sharpness.asga(ascent="momentum", mask={"w": True, "step": False})
  fn = lambda p: jnp.sum(p["w"] ** 2) * jnp.sum(p["step"] ** 2)  # noqa: E731
  state = tx.init(params)
  assert sum(leaf.size for leaf in jax.tree.leaves(state.ascent)) == 4 + 2
  grads = jax.grad(fn)(params)
  updates, state = tx.update(grads, state, params, value=fn(params))
  np.testing.assert_array_equal(updates["step"], grads["step"])
  point = sharpness.ascent_point(state, params)
  assert point["step"] is params["step"]
  moved = np.linalg.norm(point["w"] - params["w"])
  # λ takes its share from ρ: the direction is a tenth of the gradient.
  norm = 0.1 * np.linalg.norm(grads["w"])
  shift = 0.05 - min(1e-3, 0.05 / (2 * norm)) * norm
  np.testing.assert_allclose(moved, shift, rtol=1e-4)


@pytest.mark.parametrize("ascent", ["previous", "momentum"])
def test_zero_gradients_move_nothing_and_give_no_nan(ascent):
  tx = sharpness.asga(ascent=ascent)
  params, state, found = one_gradient_steps(
    tx, jnp.ones(3), lambda p: 0.0 * jnp.sum(p), 3
  )
  np.testing.assert_array_equal(params, jnp.ones(3))
  assert all(np.isfinite(list(f.values())).all() for f in found)
  assert int(state.gaps_seen) == 0
  np.testing.assert_array_equal(sharpness.ascent_point(state, params), params)


def test_a_past_of_no_weight_is_not_read():
  tx = sharpness.preset("asga", ascent="previous")
  params, state = jnp.ones(2), tx.init(jnp.ones(2))
  for slope in (np.inf, 3.0):
    grads = jnp.full(2, slope)
    _, state = tx.update(grads, state, params, value=jnp.ones(()))
  np.testing.assert_array_equal(state.ascent.direction, [3.0, 3.0])
  np.testing.assert_allclose(state.ascent.norm, 3 * np.sqrt(2), rtol=1e-6)


def test_bfloat16_parameters_keep_their_dtype_and_a_float32_direction():
  params = jnp.ones(3, jnp.bfloat16)
  tx = sharpness.asga(ascent="previous")
  state = tx.init(params)
  updates, state = tx.update(params, state, params, value=jnp.bfloat16(1))
  assert updates.dtype == jnp.bfloat16
  assert state.ascent.direction.dtype == jnp.float32
  assert sharpness.ascent_point(state, params).dtype == jnp.bfloat16


def test_a_fresh_ascent_point_is_the_parameters_themselves():
  params = {"w": jnp.ones(2)}
  assert sharpness.ascent_point(sharpness.asga().init(params), params) is params


def test_with_nnx_optimizer():
  model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
  tx = optax.chain(
    sharpness.asga(ascent="previous", rho_max=0.5), optax.sgd(0.1)
  )
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  graphdef, params = nnx.split(model, nnx.Param)
  params = nnx.to_pure_dict(params)

  def pure_loss(params):
    return jnp.mean(nnx.merge(graphdef, nnx.State(params))(x) ** 2)

  want, _, _ = one_gradient_steps(tx, params, pure_loss, 3)
  for _ in range(3):
    here = nnx.as_pure(nnx.state(model, nnx.Param))
    point = sharpness.ascent_point(optimizer.opt_state, here)
    value, grads = nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(
      nnx.merge(graphdef, point)
    )
    optimizer.update(model, grads, value=value)
  got = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want
  )


def test_second_passes_at_every_third_step_alone():
  fn = jax.value_and_grad(loss)
  calls = []

  def counted(params):
    jax.debug.callback(lambda: calls.append(1))
    return fn(params)

  def run(every):
    tx = sharpness.asga(ascent_every=every, gap_ema=0.5)

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
  every_step = sharpness.asga(gap_ema=0.5)
  for index, (params, old, updates, new) in enumerate(found):
    value, grads = fn(params)
    if index % 3 == 0:
      want, state = every_step.update(
        grads, old, params, value=value, value_and_grad_fn=fn
      )
      np.testing.assert_allclose(updates, want, rtol=1e-6)
      for left, right in zip(state[:-1], new[:-1], strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)
    else:
      np.testing.assert_array_equal(updates, grads)
      kept = ("gap", "gaps_seen", "raw_gap", "cosine", "perturbed_value")
      assert all(getattr(new, name) == getattr(old, name) for name in kept)
      assert (new.coefficient, new.value) == (0, value)
  assert [int(new.gaps_seen) for *_, new in found] == [1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"ascent": "stale"}, r"ascent='stale'.*'fresh', 'previous', 'momentum'"),
    ({"ascent_every": 0}, "ascent_every=0; accepted: a whole number"),
    ({"ascent_every": 2.0}, "ascent_every=2.0"),
    ({"ascent_every": True}, "ascent_every=True"),
    (
      {"ascent": "previous", "combination": "gsam"},
      "ascent='previous' with combination='gsam'; accepted:",
    ),
    ({"ascent": "momentum", "combination": "plain"}, "combination='plain'"),
    ({"ascent": "previous", "axis_name": "data"}, "axis_name='data'"),
    ({"ascent": "previous", "ascent_every": 2}, "ascent_every=2"),
    ({"ascent": "previous", "cap_align": False}, "cap_align=False"),
  ],
)
def test_settings_that_do_not_go_together(settings, message):
  with pytest.raises(ValueError, match=message):
    sharpness.asga_transform(**settings)


def test_the_loss_is_asked_for():
  tx = sharpness.asga(ascent="previous")
  params = jnp.ones(2)
  with pytest.raises(ValueError, match="update of asga_transform lacks value;"):
    tx.update(params, tx.init(params), params)
