"""The optimizers against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asga_jax.training import optimizers

STEPS, WARMUP = 40, 2


def _optimizer(**changes):
  settings = {
    "steps": STEPS,
    "learning_rate": 0.2,
    "quantizer_learning_rate": 0.01,
    "momentum": 0.0,
    "weight_decay": 0.0,
  }
  return optimizers.weight_optimizer(**{**settings, **changes})


PARAMS = {
  "weights": {
    "kernel": jnp.full((2, 3), 2.0),
    "bias": jnp.full(3, 2.0),
    "scale": jnp.full(3, 1.5),
  },
  # One step a candidate, and one a candidate and channel.
  "quantizers": {"steps": jnp.array([0.5, 0.01]), "wide": jnp.ones((2, 3))},
}


def _rate(step, peak):
  """Linear from a tenth over the warm-up, then a cosine to zero."""
  if step < WARMUP:
    return peak / 10 + (peak - peak / 10) * step / WARMUP
  share = (step - WARMUP) / (STEPS - WARMUP)
  return peak * (1 + math.cos(math.pi * min(share, 1))) / 2


def test_weights_follow_warm_up_and_cosine():
  optimizer = _optimizer()
  update = jax.jit(optimizer.update)
  state = optimizer.init(PARAMS)
  grads = jax.tree.map(jnp.ones_like, PARAMS)
  for step in range(STEPS + 2):
    updates, state = update(grads, state, PARAMS)
    np.testing.assert_allclose(
      updates["weights"]["bias"], -_rate(step, 0.2), rtol=1e-4, atol=1e-7
    )


def test_step_sizes_move_by_their_relative_size():
  optimizer = _optimizer()
  state = optimizer.init(PARAMS)
  grads = jax.tree.map(lambda leaf: -3.0 * jnp.ones_like(leaf), PARAMS)
  updates, _ = optimizer.update(grads, state, PARAMS)
  # Adam's first update is the sign of the gradient.
  np.testing.assert_allclose(
    updates["quantizers"]["steps"], 0.001 * np.array([0.5, 0.01]), rtol=1e-4
  )


def test_momentum_is_nesterovs():
  optimizer = _optimizer(momentum=0.9)
  state = optimizer.init(PARAMS)
  grads = jax.tree.map(jnp.ones_like, PARAMS)
  velocity = 0.0
  for step in range(3):
    updates, state = optimizer.update(grads, state, PARAMS)
    velocity = 0.9 * velocity + 1
    expected = -_rate(step, 0.2) * (1 + 0.9 * velocity)
    np.testing.assert_allclose(
      updates["weights"]["kernel"], expected, rtol=1e-5
    )


def test_weight_decay_holds_for_kernels_alone():
  optimizer = _optimizer(weight_decay=0.3)
  state = optimizer.init(PARAMS)
  grads = jax.tree.map(jnp.zeros_like, PARAMS)
  params = PARAMS
  factor = 1.0
  for step in range(3):
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    factor *= 1 - 0.3 * _rate(step, 0.2)
  np.testing.assert_allclose(
    params["weights"]["kernel"], 2.0 * factor, rtol=1e-5
  )
  for name in ("bias", "scale"):
    np.testing.assert_array_equal(
      params["weights"][name], PARAMS["weights"][name]
    )
  for name, leaf in PARAMS["quantizers"].items():
    np.testing.assert_array_equal(params["quantizers"][name], leaf)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("steps", 0),
    ("learning_rate", -0.1),
    ("quantizer_learning_rate", -1.0),
    ("momentum", 1.0),
    ("momentum", -0.1),
    ("weight_decay", -1e-4),
    ("warmup_fraction", 1.0),
  ],
)
def test_a_value_out_of_range_is_named(name, value):
  with pytest.raises(ValueError, match=f"{name}={value}; expected"):
    _optimizer(**{name: value})


def test_a_schedule_of_one_step_is_finite():
  optimizer = _optimizer(steps=1)
  grads = jax.tree.map(jnp.ones_like, PARAMS)
  updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(updates))


def _warm(step, warmup):
  return 0.02 + 0.18 * step / warmup


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1])
@pytest.mark.parametrize("kind", optimizers.SCHEDULES)
def test_a_schedule_is_a_warm_up_and_its_closed_form(kind, warmup_fraction):
  steps = 40
  schedule = optimizers.make_schedule(
    kind,
    0.2,
    steps,
    warmup_fraction=warmup_fraction,
    milestones=(0.25, 0.5),
    decay_factor=0.3,
  )
  warmup = int(warmup_fraction * steps)
  for step in range(steps + 1):
    after = {
      "constant": 0.2,
      "step": 0.2 * 0.3 ** ((step >= 10) + (step >= 20)),
      "cosine": 0.1
      * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))),
    }[kind]
    expected = _warm(step, warmup) if step < warmup else after
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
  ("kind", "settings", "named"),
  [
    ("linear", {}, "schedule='linear'"),
    ("step", {"milestones": (0.5, 0.5)}, r"milestones=\(0.5, 0.5\)"),
    ("step", {"milestones": (0.5, 1.0)}, r"milestones=\(0.5, 1.0\)"),
    ("step", {"milestones": (0.01,)}, r"milestones=\(0.01,\)"),
    ("step", {"decay_factor": 0.0}, "decay_factor=0.0"),
    ("cosine", {"warmup_fraction": -0.1}, "warmup_fraction=-0.1"),
  ],
)
def test_a_bad_schedule_is_named(kind, settings, named):
  with pytest.raises(ValueError, match=named):
    optimizers.make_schedule(kind, 0.1, 10, **settings)
