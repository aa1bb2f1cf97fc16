"""The mixture for a compiler against the formula: values and gradients."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax.quantization import mixture as formula
from asga_jax.quantization import quantizers
from asga_jax.xla import candidate_sums, mixture

BITS = (2, 5, 32)


def _grids(bits=BITS, signed=True):
  return formula.make_grids(
    jnp.asarray(bits, jnp.int32), jnp.asarray(signed), narrow=True
  )


def _mix(x, steps, probabilities, grids, *, offset=0.0, step_gradient="full"):
  """Calls the fast form as the formula is called."""
  settings = mixture.Settings(offset, step_gradient, quantizers.SMALLEST_STEP)
  return mixture.mix(x, steps, probabilities, grids, settings)


def _inputs(shape, channels=None, *, bits=BITS, dtype=jnp.float32, seed=0):
  """Makes x, steps that clip about a tenth, logits and an output gradient."""
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(size=shape), dtype)
  upper = np.array([2.0 ** (bit - 1) - 1 for bit in bits])
  clip = rng.uniform(1.4, 1.8, (len(bits), *((channels,) if channels else ())))
  steps = clip / upper.reshape((-1,) + (1,) * (clip.ndim - 1))
  logits = rng.normal(size=len(bits))
  g = rng.normal(size=shape)
  return (
    x,
    jnp.asarray(steps, jnp.float32),
    jnp.asarray(logits, jnp.float32),
    jnp.asarray(g, dtype),
  )


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _value_and_gradients(function, arguments, grids, offset, step_gradient):
  *primals, g = arguments

  def of_logits(x, steps, logits):
    return function(
      x,
      steps,
      jax.nn.softmax(logits),
      grids,
      offset=offset,
      step_gradient=step_gradient,
    )

  value, pullback = jax.vjp(of_logits, *primals)
  return value, *pullback(g)


def _assert_agrees(arguments, grids, offset=0.0, step_gradient="full"):
  # A sum of n terms in float32, in another order: an error of a few 1e-7 of
  # the sum of their absolute values.
  x, _, _, g = arguments
  scale = float(jnp.sum(jnp.abs(g * x))) + 1.0
  found, expected = (
    _value_and_gradients(function, arguments, grids, offset, step_gradient)
    for function in (_mix, formula.mixture)
  )
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)
  steps_scale = np.abs(expected[2]).max() + 1.0
  np.testing.assert_allclose(
    found[2], expected[2], rtol=1e-4, atol=1e-5 * steps_scale
  )
  np.testing.assert_allclose(
    found[3], expected[3], rtol=1e-4, atol=3e-6 * scale
  )
  assert np.abs(expected[1]).max() > 0


@pytest.mark.parametrize(
  ("channels", "offset", "step_gradient"),
  [
    (None, 0.0, "full"),
    pytest.param(5, 0.0, "clip", marks=pytest.mark.slow),
    pytest.param(None, 0.5, "clip", marks=pytest.mark.slow),
    (5, 0.5, "full"),
  ],
)
def test_agrees_with_autodiff(channels, offset, step_gradient):
  arguments = _inputs((3, 7, 5), channels)
  _assert_agrees(arguments, _grids(), offset, step_gradient)


@pytest.mark.parametrize(
  ("shape", "channels"),
  [
    ((), None),
    pytest.param((7,), 7, marks=pytest.mark.slow),
    pytest.param((1, 1), 1, marks=pytest.mark.slow),
    ((3, 3, 1, 6), 6),
  ],
)
def test_odd_shapes(shape, channels):
  _assert_agrees(_inputs(shape, channels), _grids())


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "channels"),
  [
    # Several slices, the last with a prime number of rows.
    ((8, 16, 16, 24), None),
    ((4, 16, 16, 24), 24),
    ((5003, 8), 8),
    # No number of lanes divides an odd size.
    ((3, 5, 33, 33), None),
  ],
)
def test_large_tensors(shape, channels, monkeypatch):
  monkeypatch.setattr(candidate_sums, "CPU_SLICE", 1536)
  # What was traced before with larger slices.
  mixture._outlined_sweep.cache_clear()
  _assert_agrees(_inputs(shape, channels), _grids())


@pytest.mark.slow
@pytest.mark.parametrize("step_gradient", ["full", "clip"])
@pytest.mark.parametrize(
  ("shape", "channels"),
  [((), None), ((0, 3), None), ((6, 5, 7), None), ((6, 5, 7), 7), ((9,), 9)],
)
def test_sums_do_not_depend_on_the_platform(shape, channels, step_gradient):
  x, steps, _, g = _inputs(shape, channels)
  settings = {"offset": 0.5, "step_gradient": step_gradient}
  found = candidate_sums.of(x, g, 1 / steps, _grids(), **settings)
  with mock.patch.object(jax, "default_backend", return_value="gpu"):
    expected = candidate_sums.of(x, g, 1 / steps, _grids(), **settings)
  for one, other in zip(found, expected, strict=True):
    assert one.shape == other.shape == steps.shape
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_unsigned_with_exact_ties():
  # Zeros lie on the lowest code and multiples of the step on codes; clipped
  # elements pass no gradient, those on the edge of the range neither.
  x, steps, logits, g = _inputs((40, 4))
  x = jnp.round(jax.nn.relu(x) * 4) / 4
  steps = jnp.asarray([0.5, 0.25, 0.25])
  _assert_agrees((x, steps, logits, g), _grids(signed=False))


def test_zeros():
  _, steps, logits, g = _inputs((6, 4), 4)
  x = jnp.zeros((6, 4))
  value, dx, *_ = _value_and_gradients(
    _mix, (x, steps, logits, g), _grids(), 0.0, "full"
  )
  np.testing.assert_array_equal(value, 0)
  np.testing.assert_allclose(dx, g, rtol=1e-6)


@pytest.mark.slow
def test_bfloat16():
  arguments = _inputs((30, 5), 5, dtype=jnp.bfloat16)
  x, steps, logits, g = arguments
  found = _value_and_gradients(_mix, arguments, _grids(), 0.0, "full")
  wide = (x.astype(jnp.float32), steps, logits, g.astype(jnp.float32))
  expected = _value_and_gradients(formula.mixture, wide, _grids(), 0.0, "full")
  assert [part.dtype for part in found] == [
    jnp.bfloat16,
    jnp.bfloat16,
    jnp.float32,
    jnp.float32,
  ]
  # Codes and sums in float32: only what has the tensor's type is rounded.
  for index, tolerance in enumerate([2**-8, 2**-8, 1e-4, 1e-4]):
    np.testing.assert_allclose(
      found[index].astype(jnp.float32),
      expected[index],
      rtol=tolerance,
      atol=1e-4,
    )


@pytest.mark.slow
def test_float64():
  with jax.enable_x64(True):
    x, steps, logits, g = _inputs((4, 700, 30), dtype=jnp.float64)
    arguments = (x, steps.astype(jnp.float64), logits.astype(jnp.float64), g)
    grids = _grids()
    found, expected = (
      _value_and_gradients(function, arguments, grids, 0.0, "full")
      for function in (_mix, formula.mixture)
    )
    for new, old in zip(found, expected, strict=True):
      assert new.dtype == jnp.float64
      np.testing.assert_allclose(new, old, rtol=1e-9, atol=1e-9)


def _with_gradients(function, x, steps, g):
  value, pullback = jax.vjp(function, x, steps)
  return value, pullback(g)


@pytest.mark.parametrize("bit", [3, 32])
def test_one_candidate_is_that_quantizer(bit):
  x, steps, _, g = _inputs((20, 4), bits=(bit,))
  grids = _grids((bit,))
  ones = jnp.ones(1)

  def quantize(x, step):
    if bit == 32:
      return x
    return quantizers.fake_quantize(x, step, grids.lower, grids.upper)

  def mix(x, step):
    return _mix(x, step, ones, grids)

  (value, gradients), (expected, expected_gradients) = (
    jax.jit(
      lambda x, step, function=function: _with_gradients(function, x, step, g)
    )(x, steps)
    for function in (mix, quantize)
  )
  np.testing.assert_array_equal(value, expected)
  for new, old in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5)


def test_a_certain_candidate_is_that_quantizer():
  x, steps, _, _ = _inputs((20, 4))
  for index in range(len(BITS)):
    one = slice(index, index + 1)
    np.testing.assert_array_equal(
      _mix(x, steps, jnp.eye(len(BITS))[index], _grids()),
      _mix(x, steps[one], jnp.ones(1), _grids(BITS[one])),
    )


@pytest.mark.parametrize("step", [1e-9, 0.0, -0.3])
def test_step_below_the_smallest_receives_a_gradient(step):
  x, steps, logits, g = _inputs((20, 4))
  # All but the float candidate clip everything: the sign of x is the slope.
  arguments = (x, jnp.full_like(steps, step), logits, g)
  _, dx, dsteps, _ = _value_and_gradients(
    _mix, arguments, _grids(), 0.0, "full"
  )
  upper = np.array([2.0 ** (bit - 1) - 1 for bit in BITS[:-1]])
  weights = jax.nn.softmax(logits)
  expected = weights[:-1] * upper * jnp.vdot(g, jnp.sign(x))
  np.testing.assert_allclose(dsteps[:-1], expected, rtol=1e-3)
  assert dsteps[-1] == 0
  np.testing.assert_allclose(dx, weights[-1] * g, rtol=1e-5)
  _assert_agrees(arguments, _grids())


def _memory(bits, function, shape=(64, 32, 32, 16)):
  """Gives the bytes that the pullback keeps, and those a program needs."""
  x, steps, logits, _ = _inputs(shape, bits=bits)

  def run(x, steps, logits):
    return function(x, steps, jax.nn.softmax(logits), _grids(bits))

  kept = jax.eval_shape(
    lambda *primals: jax.tree.leaves(jax.vjp(run, *primals)[1]),
    x,
    steps,
    logits,
  )

  def train(x, steps, logits):
    return jax.grad(
      lambda *primals: jnp.sum(jnp.sin(run(*primals))), (0, 1, 2)
    )(x, steps, logits)

  compiled = jax.jit(train).lower(x, steps, logits).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
  return size / x.nbytes, temporary / x.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 32, 32, 16), (65_521, 16)])
def test_memory_does_not_grow_with_the_candidates(shape):
  few_kept, few = _memory((4, 8), _mix, shape)
  kept, many = _memory((2, 3, 4, 6, 8), _mix, shape)
  # The tensor itself, and a few numbers for each candidate.
  assert few_kept < kept < 1.01
  assert many < few + 0.2


@pytest.mark.slow
def test_memory_of_the_formula_does_grow():
  few_kept, _ = _memory((4, 8), formula.mixture)
  kept, _ = _memory((2, 3, 4, 6, 8), formula.mixture)
  assert kept > few_kept + 3 * 0.9
