"""Steps of one gradient, against numpy in float64."""

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
  tx = sharpness.asga_transform(
    ascent="momentum", mask={"w": True, "step": False}
  )
  fn = lambda p: jnp.sum(p["w"] ** 2) * jnp.sum(p["step"] ** 2)  # noqa: E731
  state = tx.init(params)
  assert sum(leaf.size for leaf in jax.tree.leaves(state.displacement)) == 4 + 2
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
  tx = sharpness.asga_transform(ascent=ascent)
  params, state, found = one_gradient_steps(
    tx, jnp.ones(3), lambda p: 0.0 * jnp.sum(p), 3
  )
  np.testing.assert_array_equal(params, jnp.ones(3))
  assert all(np.isfinite(list(f.values())).all() for f in found)
  assert int(state.gaps_seen) == 0
  np.testing.assert_array_equal(sharpness.ascent_point(state, params), params)


def test_a_past_of_no_weight_is_not_read():
  tx = sharpness.asga_transform(ascent="previous")
  params, state = jnp.ones(2), tx.init(jnp.ones(2))
  for slope in (np.inf, 3.0):
    grads = jnp.full(2, slope)
    _, state = tx.update(grads, state, params, value=jnp.ones(()))
  np.testing.assert_array_equal(state.displacement.direction, [3.0, 3.0])
  np.testing.assert_allclose(state.displacement.norm, 3 * np.sqrt(2), rtol=1e-6)


def test_bfloat16_parameters_are_moved_in_float32():
  # One of a million weights moves by 5e-5, and the spacing at 1 is 8e-3.
  params = {"w": jnp.ones(1_000_000, jnp.bfloat16), "b": jnp.ones(2)}
  tx = optax.chain(
    sharpness.asga_transform(
      rho_max=0.05, align=0.0, ascent="previous", mask={"w": True, "b": False}
    ),
    optax.sgd(1e-4, momentum=0.9),
  )

  def loss(params):
    return jnp.sum(params["w"].astype(jnp.float32) ** 2) / 1e6 + params["b"][0]

  def step(carry, _):
    params, state = carry
    point = sharpness.ascent_point(state, params)
    value, grads = jax.value_and_grad(loss)(point)
    updates, state = tx.update(grads, state, params, value=value)
    return (optax.apply_updates(params, updates), state), point["w"][0]

  # A scan takes a state that keeps its dtypes.
  (after, state), points = jax.lax.scan(
    step, (params, tx.init(params)), length=3
  )
  assert points.dtype == state[0].displacement.direction["w"].dtype == "float32"
  assert after["w"].dtype == "bfloat16"
  assert points[0] == 1
  np.testing.assert_allclose(points[1:], 1 + 5e-5, rtol=1e-6)


def test_a_fresh_ascent_point_is_the_parameters_themselves():
  params = {"w": jnp.ones(2)}
  assert (
    sharpness.ascent_point(sharpness.asga_transform().init(params), params)
    is params
  )


@pytest.mark.slow
def test_with_nnx_optimizer():
  model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
  tx = optax.chain(
    sharpness.asga_transform(ascent="previous", rho_max=0.5), optax.sgd(0.1)
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


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"ascent": "stale"}, r"ascent='stale'.*'fresh', 'previous', 'momentum'"),
    ({"ascent_every": 0}, "ascent_every=0; expected a whole number"),
    ({"ascent_every": 2.0}, "ascent_every=2.0"),
    ({"ascent_every": True}, "ascent_every=True"),
    (
      {"ascent": "previous", "combination": "gsam"},
      "ascent='previous' with combination='gsam'; expected one",
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
  tx = sharpness.asga_transform(ascent="previous")
  params = jnp.ones(2)
  with pytest.raises(ValueError, match="update of asga_transform lacks value;"):
    tx.update(params, tx.init(params), params)
