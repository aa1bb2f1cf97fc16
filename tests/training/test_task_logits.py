"""The task's part of the logits, against Adam itself and a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asga_jax.training import task_logits

RNG = np.random.default_rng(0)


def _draw():
  return {
    3: jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32),
    5: jnp.asarray(RNG.normal(size=(2, 5)), jnp.float32),
  }


def test_the_parts_of_loss_and_penalty_sum_up_to_adam():
  rate = 0.1
  adam = task_logits.optimizer(rate)
  start = _draw()
  logits, state = start, adam.init(start)
  of_loss, of_penalty = (task_logits.init(start) for _ in range(2))
  for _ in range(7):
    loss, penalty = _draw(), jax.tree.map(lambda x: 5 * x, _draw())
    both = jax.tree.map(jnp.add, loss, penalty)
    updates, state = adam.update(both, state)
    logits = optax.apply_updates(logits, updates)
    of_loss = task_logits.update(of_loss, loss, state, rate)
    of_penalty = task_logits.update(of_penalty, penalty, state, rate)
  jax.tree.map(
    lambda whole, first, second, begun: np.testing.assert_allclose(
      first + second - begun, whole, rtol=1e-4, atol=1e-5
    ),
    logits,
    of_loss.total,
    of_penalty.total,
    start,
  )
  apart = np.abs(of_penalty.total[3] - start[3]).max()
  assert apart > 0.1


def test_without_a_penalty_it_is_the_logits():
  rate = 0.1
  adam = task_logits.optimizer(rate)
  logits = _draw()
  state, task = adam.init(logits), task_logits.init(logits)
  for _ in range(5):
    slopes = _draw()
    updates, state = adam.update(slopes, state)
    logits = optax.apply_updates(logits, updates)
    task = task_logits.update(task, slopes, state, rate)
  np.testing.assert_allclose(task.total[5], logits[5], rtol=1e-5, atol=1e-6)


COSTS = np.array([2.0, 4.0, 8.0], np.float32)


def _use(probabilities):
  """Costs of weight and input bits together, over a budget of 16 a layer."""
  bits = probabilities[3] @ COSTS
  return jnp.stack([jnp.sum(bits[:2] * bits[2:]) / (2 * 16)])


@pytest.mark.parametrize("strength", [0.0, 1.0, 30.0])
def test_a_price_meets_the_budget_and_keeps_the_order_of_tensors(strength):
  task = {3: strength * jnp.asarray([[-4, -2, 0], [-0.4, -0.2, 0]] * 2)}
  priced = task_logits.priced(task, _use, jnp.float32(1))
  mixed = jax.nn.softmax(priced[3])
  use = _use({3: mixed})[0]
  assert use <= 1.01
  # Steeper logits jump from candidate to candidate.
  if strength < 30:
    np.testing.assert_allclose(use, 1, atol=0.02)
  if strength:
    # What is more sensitive keeps more bits.
    bits = mixed @ COSTS
    assert bits[0] > bits[1]
    assert bits[2] > bits[3]


def test_a_budget_that_is_met_asks_no_price():
  task = {3: jnp.asarray([[9.0, 0, 0]] * 4)}
  priced = task_logits.priced(task, _use, jnp.float32(1))
  np.testing.assert_array_equal(priced[3], task[3])
