"""The variables of a bit choice, and what it computes from them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from asga_jax.quantization import bit_choice, methods

SAMPLE = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.float32)


def _choice(bits=(2, 4, 8), *, per_channel=False, sample=SAMPLE, **settings):
  return bit_choice.BitChoice(
    bits,
    sample if per_channel else sample.reshape(-1),
    quantizer=methods.make_quantizer(
      "lsq", weights=True, per_channel=per_channel
    ),
    signed=True,
    temperature=bit_choice.Temperature(jnp.ones(())),
    **settings,
  )


def test_probabilities():
  logits = np.array([0.3, -1.0, 2.0])
  for temperature in (0.1, 1.0, 5.0):
    powers = np.exp(logits / temperature)
    np.testing.assert_allclose(
      bit_choice.probabilities(jnp.asarray(logits), jnp.asarray(temperature)),
      powers / powers.sum(),
      rtol=1e-5,
    )
  for logit in (0.0, -1e9, 1e9):
    one = bit_choice.probabilities(jnp.asarray([logit]), jnp.asarray(0.01))
    assert one.tolist() == [1.0]


@pytest.mark.parametrize("per_channel", [False, True])
def test_variables(per_channel):
  choice = _choice(per_channel=per_channel)
  state = nnx.to_flat_state(nnx.as_pure(nnx.state(choice)))
  assert {path[0]: leaf.shape for path, leaf in state} == {
    "grid": (3, 3),
    "temperature": (),
    "logits": (3,),
    "parameter": (3, 3) if per_channel else (3,),
  }
  assert choice.candidates() == (2, 4, 8)
  # Only kernels and biases are what an optimizer of weights asks for.
  assert not jax.tree.leaves(nnx.state(choice, nnx.Param))
  logits = nnx.state(choice, bit_choice.BitLogits)
  np.testing.assert_array_equal(jax.tree.leaves(logits)[0], np.zeros(3))


def test_is_the_mean_of_its_quantizers():
  choice = _choice(per_channel=True)
  choice.logits[...] = jnp.asarray([0.5, -0.5, 1.0])
  choice.temperature[...] = jnp.asarray(0.5)
  expected = 0.0
  weights = np.exp([1.0, -1.0, 2.0]) / np.exp([1.0, -1.0, 2.0]).sum()
  x, steps = np.asarray(SAMPLE), np.asarray(choice.parameter[...])
  for weight, step, upper in zip(weights, steps, (1, 7, 127), strict=True):
    expected += weight * step * np.clip(np.round(x / step), -upper, upper)
  np.testing.assert_allclose(choice(SAMPLE), expected, atol=1e-5)


def test_gradient_of_the_logits():
  # The derivative of a softmax: p_b (Q_b - sum_c p_c Q_c) at each element.
  choice = _choice()
  graphdef, logits, rest = nnx.split(choice, bit_choice.BitLogits, ...)
  g = jnp.cos(SAMPLE)

  def loss(logits):
    return jnp.vdot(nnx.merge(graphdef, logits, rest, copy=True)(SAMPLE), g)

  found = jax.tree.leaves(jax.jit(jax.grad(loss))(logits))[0]
  parts = []
  for index in range(3):
    choice.logits[...] = jnp.where(jnp.arange(3) == index, 0.0, -1e9)
    parts.append(np.vdot(choice(SAMPLE), g))
  expected = (np.array(parts) - np.mean(parts)) / 3
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_shared_logits():
  first = _choice()
  second = _choice(logits=first.logits)
  assert second.logits is first.logits
  assert second.parameter is not first.parameter


def test_adam_moves_the_steps_of_all_candidates_where_gradients_are_small():
  # As late in a training, of an input of 56x56x64: a scale of 1/sqrt(N upper)
  # before Adam would take gradients to its epsilon.
  x = jax.random.normal(jax.random.key(0), (56 * 56 * 64,))
  choice = _choice(tuple(range(2, 9)), sample=x[::100])
  graphdef, parameter, rest = nnx.split(
    choice, bit_choice.QuantizerParameter, ...
  )

  @jax.jit
  def first_update(parameter):
    def loss(parameter):
      mixed = nnx.merge(graphdef, parameter, rest, copy=True)(x)
      return 1e-5 * jnp.mean((mixed - 1.1 * x) ** 2)

    optimizer = optax.scale_by_adam()
    gradient = jax.grad(loss)(parameter)
    return optimizer.update(gradient, optimizer.init(parameter))[0]

  (moved,) = jax.tree.leaves(first_update(parameter))
  assert moved.shape == (7,)
  assert np.abs(moved).min() > 0.8


@pytest.mark.parametrize("bits", [(), (4, 4), (9,)])
def test_bad_bits(bits):
  with pytest.raises(ValueError, match=r"bits .*expected distinct"):
    _choice(bits)
