"""Quantizers against published formulas and tables, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from asga_jax.quantization import bit_choice, methods, quantizers

# Of most tensors: each other one compiles the same again.
SHAPE = (300, 4)
# One line a quantizer and role: name, whether of weights, step a channel,
# signed, and whether quantizing twice changes nothing.
CONTRACT = [
  ("lsq", True, False, True, True),
  ("lsq", True, True, True, True),
  ("lsq", False, False, False, True),
  ("lsq", False, False, True, True),
  ("pact", True, True, True, True),
  ("pact", False, False, False, True),
  ("dorefa", True, False, True, False),
  ("dorefa", False, False, False, True),
  ("hwgq", True, True, True, True),
  ("hwgq", False, False, False, True),
  ("hwgq", False, False, True, True),
]
IDS = [
  f"{name}-{'weights' if weights else 'activations'}"
  f"{'-per_channel' if per_channel else ''}{'-signed' if signed else ''}"
  for name, weights, per_channel, signed, _ in CONTRACT
]


def _tensor(signed, shape=SHAPE):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  return jnp.asarray(x if signed else np.maximum(x, 0))


def _choice(x, bits, name, weights, per_channel, signed):
  quantizer = methods.make_quantizer(
    name, weights=weights, per_channel=per_channel
  )
  sample = quantizer.transform(x)
  return bit_choice.BitChoice(
    bits,
    sample.reshape(-1, x.shape[-1]) if per_channel else sample.reshape(-1),
    quantizer=quantizer,
    signed=signed,
    temperature=bit_choice.Temperature(jnp.ones(())),
  )


def _with_parameter(choice, parameter):
  choice = nnx.clone(choice)
  choice.parameter = bit_choice.QuantizerParameter(parameter)
  return choice


@pytest.mark.parametrize(
  ("name", "weights", "per_channel", "signed", "idempotent"), CONTRACT, ids=IDS
)
@pytest.mark.parametrize("bit", [2, 4, 8])
def test_contract(name, weights, per_channel, signed, idempotent, bit):
  x = _tensor(signed)
  choice = _choice(x, (bit,), name, weights, per_channel, signed)
  quantized = np.asarray(choice(x))
  assert quantized.shape == x.shape
  assert quantized.dtype == x.dtype
  channels = quantized.reshape(-1, x.shape[-1]) if per_channel else quantized
  for channel in channels.T if per_channel else [channels]:
    levels = np.unique(channel)
    assert 2 <= len(levels) <= 2**bit
    np.testing.assert_allclose(
      np.diff(levels) / np.diff(levels).min(),
      np.round(np.diff(levels) / np.diff(levels).min()),
      rtol=1e-3,
    )
  if choice.quantizer.offset == 0:
    np.testing.assert_array_equal(choice(jnp.zeros_like(x)), 0)
  if idempotent:
    np.testing.assert_array_equal(choice(jnp.asarray(quantized)), quantized)
  if not signed:
    assert quantized.min() >= 0


@pytest.mark.parametrize(
  ("name", "weights", "per_channel", "signed", "idempotent"), CONTRACT, ids=IDS
)
def test_32_bits_is_the_identity(
  name, weights, per_channel, signed, idempotent
):
  del idempotent
  x = np.array(_tensor(signed))
  x[0, 0] = -0.0
  x = jnp.asarray(x)
  choice = _choice(x, (32,), name, weights, per_channel, signed)
  for call in (choice, jax.jit(choice.__call__)):
    quantized = call(x)
    assert np.asarray(quantized).tobytes() == np.asarray(x).tobytes()

  def loss(x):
    return jnp.vdot(choice(x), x**2)

  gradient = jax.jit(jax.grad(loss))(x)
  np.testing.assert_allclose(gradient, 3 * x**2, rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "weights", "per_channel", "signed", "idempotent"), CONTRACT, ids=IDS
)
def test_zeros_stay_finite(name, weights, per_channel, signed, idempotent):
  del idempotent
  x = jnp.zeros((300, 4))
  choice = _choice(x, (2, 8, 32), name, weights, per_channel, signed)

  def loss(x):
    return choice(x).sum()

  value, gradient = jax.jit(jax.value_and_grad(loss))(x)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
  # What replaces the zeros can be told apart: it is not clipped to nothing.
  trained = jnp.linspace(0, 1, x.size).reshape(x.shape)
  assert np.ptp(choice(trained)) > 0.5


# A Gaussian: the error at the steps of Max (1960), table 2, for 3, 7 and 15
# levels, integrated. A uniform tensor: a twelfth of the squared step.
def test_error_table():
  rng = np.random.default_rng(1)
  gaussian = jnp.asarray(rng.normal(size=50_000).astype(np.float32))
  uniform = jnp.asarray(rng.uniform(-1, 1, 50_000).astype(np.float32))
  points = np.linspace(-10, 10, 100_001)
  density = stats.norm.pdf(points)
  for bit, step in [(2, 1.224), (3, 0.6508), (4, 0.3534)]:
    upper = 2 ** (bit - 1) - 1
    rounded = step * np.clip(np.round(points / step), -upper, upper)
    expected = np.trapezoid((rounded - points) ** 2 * density, points)
    choice = _choice(gaussian, (bit,), "lsq", True, False, True)
    error = np.mean((choice(gaussian) - gaussian) ** 2)
    np.testing.assert_allclose(error, expected, rtol=0.05)
  for bit in range(2, 9):
    choice = _choice(uniform, (bit,), "lsq", True, False, True)
    error = np.mean((choice(uniform) - uniform) ** 2)
    # 2^b - 1 levels, each in the middle of its cell of [-1, 1].
    best = (2 / (2**bit - 1)) ** 2 / 12
    assert 0.98 * best < error < 1.15 * best, bit


def _lsq_by_hand(x, g, step, lower, upper):
  """Esser et al. 2020, equations 3 and 5, without the scale for SGD."""
  ratio = x / step
  inside = (ratio > lower) & (ratio < upper)
  slope = np.where(
    inside, np.round(ratio) - ratio, np.where(ratio <= lower, lower, upper)
  )
  return g * inside, (g * slope).sum(axis=0)


@pytest.mark.parametrize("bit", [2, 4, 8])
@pytest.mark.parametrize(
  ("weights", "per_channel", "signed"),
  [(True, True, True), (True, False, True), (False, False, False)],
)
def test_lsq_gradients(bit, weights, per_channel, signed):
  rng = np.random.default_rng(2)
  x = rng.normal(size=(40, 3)).astype(np.float32)
  g = rng.normal(size=(40, 3)).astype(np.float32)
  choice = _choice(jnp.asarray(x), (bit,), "lsq", weights, per_channel, signed)
  upper = 2 ** (bit - 1) - 1 if signed else 2**bit - 1
  lower = -upper if signed else 0
  step = 0.7 / upper * (np.array([1.0, 1.5, 2.0]) if per_channel else 1.0)
  steps = jnp.asarray(step, jnp.float32)[None]

  def loss(x, steps):
    return jnp.vdot(_with_parameter(choice, steps)(x), g)

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
  dx, dstep = gradients(jnp.asarray(x), steps)
  expected_dx, expected = _lsq_by_hand(
    x.astype(np.float64), g, step, lower, upper
  )
  if not per_channel:
    expected = expected.sum()
  np.testing.assert_allclose(dx, expected_dx)
  np.testing.assert_allclose(dstep[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bit", [2, 5, 8])
def test_pact_gradients(bit):
  # Choi et al. 2018, equation 3: the clipping value gets the gradients of the
  # clipped elements, the input those of the others.
  rng = np.random.default_rng(3)
  x = rng.uniform(-1, 3, size=SHAPE).astype(np.float32)
  g = rng.normal(size=SHAPE).astype(np.float32)
  choice = _choice(jnp.asarray(x), (bit,), "pact", False, False, False)

  def loss(x, alpha):
    return jnp.vdot(_with_parameter(choice, alpha[None])(x), g)

  alpha = 1.7
  gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
  dx, dalpha = gradients(jnp.asarray(x), jnp.asarray(alpha))
  np.testing.assert_allclose(dx, g * ((x > 0) & (x < alpha)), rtol=1e-6)
  np.testing.assert_allclose(dalpha, g[x >= alpha].sum(), rtol=1e-4)
  levels = 2**bit - 1
  expected = np.round(np.clip(x, 0, alpha) * levels / alpha) * alpha / levels
  choice.parameter[...] = jnp.asarray([alpha])
  np.testing.assert_allclose(choice(jnp.asarray(x)), expected, atol=1e-6)


@pytest.mark.parametrize("bit", [2, 3, 4, 8])
def test_dorefa_weights(bit):
  # Zhou et al. 2016, equations 5 and 9.
  w = np.random.default_rng(4).normal(size=SHAPE).astype(np.float32)
  choice = _choice(jnp.asarray(w), (bit,), "dorefa", True, False, True)
  squashed = np.tanh(w.astype(np.float64))
  unit = squashed / (2 * np.abs(squashed).max()) + 0.5
  expected = 2 * np.round(unit * (2**bit - 1)) / (2**bit - 1) - 1
  np.testing.assert_allclose(choice(jnp.asarray(w)), expected, atol=1e-6)


def test_dorefa_weight_gradient_is_that_of_the_squashing():
  # The straight-through estimator makes rounding the identity.
  w = jnp.asarray(np.random.default_rng(5).normal(size=SHAPE), jnp.float32)
  g = jnp.asarray(np.random.default_rng(6).normal(size=SHAPE), jnp.float32)
  choice = _choice(w, (3,), "dorefa", True, False, True)
  squash = choice.quantizer.transform
  np.testing.assert_allclose(
    jax.jit(jax.grad(lambda w: jnp.vdot(choice(w), g)))(w),
    jax.jit(jax.grad(lambda w: jnp.vdot(squash(w), g)))(w),
    rtol=1e-4,
    atol=1e-6,
  )


def test_dorefa_float_candidate_is_not_squashed():
  w = jnp.asarray(np.random.default_rng(7).normal(size=SHAPE), jnp.float32)
  choice = _choice(w, (4, 32), "dorefa", True, False, True)
  choice.logits[...] = jnp.asarray([-1e9, 0.0])
  np.testing.assert_array_equal(choice(w), w)


def test_dorefa_activations():
  x = np.random.default_rng(10).uniform(-1, 2, SHAPE).astype(np.float32)
  choice = _choice(jnp.asarray(x), (3,), "dorefa", False, False, False)
  expected = np.round(np.clip(x, 0, 1) * 7) / 7
  np.testing.assert_allclose(choice(jnp.asarray(x)), expected, atol=1e-6)


def test_hwgq_steps_follow_the_scale_and_are_not_trained():
  x = 3 * _tensor(False, (20_000,))
  choice = _choice(x, (2,), "hwgq", False, False, False)
  np.testing.assert_allclose(choice.parameter[...], 3 * 0.538, rtol=0.02)

  def loss(parameter):
    return _with_parameter(choice, parameter)(x).sum()

  np.testing.assert_array_equal(jax.grad(loss)(choice.parameter[...]), 0)


def test_levels():
  bits = jnp.asarray([2, 3, 8])
  for signed, narrow, lower, upper in [
    (True, True, [-1, -3, -127], [1, 3, 127]),
    (True, False, [-2, -4, -128], [1, 3, 127]),
    (False, True, [0, 0, 0], [3, 7, 255]),
    (False, False, [0, 0, 0], [3, 7, 255]),
  ]:
    found = quantizers.levels(bits, jnp.asarray(signed), narrow)
    np.testing.assert_array_equal(found[0], lower)
    np.testing.assert_array_equal(found[1], upper)


@pytest.mark.parametrize("step_gradient", ["full", "clip"])
@pytest.mark.parametrize("step", [0.0, -1.0, -1e3])
def test_step_below_the_smallest_is_used_as_the_smallest(step, step_gradient):
  x = jnp.asarray([-1.0, 0.0, 0.5, 1.0])

  def quantize(step):
    return quantizers.fake_quantize(
      x, step, jnp.float32(-1), jnp.float32(1), step_gradient=step_gradient
    )

  smallest = quantizers.SMALLEST_STEP
  np.testing.assert_allclose(
    quantize(jnp.float32(step)), smallest * jnp.sign(x), rtol=1e-6
  )
  slope = jax.jacobian(quantize)(jnp.float32(step))
  np.testing.assert_allclose(slope, jnp.sign(x))


@pytest.mark.parametrize(
  ("bits", "named"),
  [
    ((), "empty"),
    ((4, 4), "duplicates"),
    ((1, 4), "1"),
    (9, "9"),
    ((16,), "16"),
    ((True, 4), "True"),
    ((2.5,), "2.5"),
    ("48", "'4'"),
  ],
)
def test_bad_bits(bits, named):
  with pytest.raises(ValueError, match=f"^bits .*{named}.*expected .*2..8"):
    quantizers.check_bits(bits, "bits")


def test_good_bits():
  assert quantizers.check_bits(32, "bits") == (32,)
  assert quantizers.check_bits([8, 2, 32], "bits") == (8, 2, 32)


def test_unknown_quantizer():
  with pytest.raises(ValueError, match=r"'lqs'.*'dorefa'.*'lsq'"):
    methods.make_quantizer("lqs", weights=True, per_channel=False)
