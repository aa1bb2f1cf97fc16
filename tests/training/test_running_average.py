"""The running average against one computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asga_jax.training import optimizers


def test_it_follows_the_recurrence_and_leaves_the_updates():
  decay, rate = 0.6, 0.1
  inner = optax.sgd(rate)
  chained = optax.chain(inner, optimizers.track_average(decay))
  params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
  state = chained.init(params)
  value = average = np.array([1.0, -2.0])
  update = jax.jit(chained.update)
  for seen in range(12):
    gradients = {"a": params["a"] + seen, "b": jnp.array(0.0)}
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    value = value - rate * (value + seen)
    kept = min(decay, (1 + seen) / (10 + seen))
    average = kept * average + (1 - kept) * value
    np.testing.assert_allclose(params["a"], value, rtol=1e-5)
    found = optimizers.find_average(state)
    np.testing.assert_allclose(found["a"], average, rtol=1e-5)
    np.testing.assert_allclose(found["b"], 3.0, rtol=1e-6)


def test_there_may_be_none():
  state = optax.sgd(0.1, momentum=0.9).init({"a": jnp.zeros(2)})
  assert optimizers.find_average(state) is None


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_bad_decay_is_named(decay):
  with pytest.raises(ValueError, match=f"decay={decay}"):
    optimizers.track_average(decay)
