"""Zero points of inputs that dip below zero: found, learned, and deployed."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import optax
import pytest
from every_kind import policy_of
from flax import nnx

import asga_jax
from asga_jax.deploy import integer, reference
from asga_jax.quantization import (
  bit_choice,
  initial_steps,
  layers,
  methods,
  quantizers,
  statistics,
)
from asga_jax.quantization import mixture as formula
from asga_jax.training import optimizers
from asga_jax.xla import mixture

PLUS = methods.LSQPlus()


def _silu(size=4000, seed=0):
  return jax.nn.silu(2 * jax.random.normal(jax.random.key(seed), (size,)))


def _error(x, step, zero, highest):
  codes = np.clip(np.rint(x / step), -zero, highest - zero)
  return float(np.sum((step * codes - x) ** 2))


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_step_and_zero_are_those_of_a_brute_force(bits):
  x = np.asarray(_silu(), np.float64)
  highest = 2**bits - 1
  sample = statistics.Statistics.of(x)
  (step,), (zero,) = initial_steps.mse_grid(sample, [highest])
  found = _error(x, step, zero, highest)
  steps = np.geomspace(x.max() / highest / 8, 2 * x.max() / highest, 200)
  best = min(
    _error(x, each, z, highest) for each in steps for z in range(highest + 1)
  )
  assert found < 1.02 * best
  # A symmetric grid of as many codes, at the best of the same steps.
  symmetric = min(_error(x, each, 2 ** (bits - 1), highest) for each in steps)
  assert found < 0.5 * symmetric


def test_what_is_never_negative_has_no_zero_point():
  sample = statistics.Statistics.of(jax.nn.relu(_silu()))
  highest = [3, 15, 255]
  steps, zeros = initial_steps.mse_grid(sample, highest)
  np.testing.assert_array_equal(zeros, 0)
  lower, upper = quantizers.levels(jnp.array([2, 4, 8]), False, False)
  least = initial_steps.mse_step(sample, lower, upper)
  x = np.asarray(jax.nn.relu(_silu()), np.float64)
  for step, other, codes in zip(steps, least, highest, strict=True):
    assert _error(x, step, 0, codes) <= 1.01 * _error(x, other, 0, codes)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30, -1e30])
def test_constants(value):
  x = jnp.full((10,), value)
  start = PLUS.start(x, (2, 8, 32), True)
  assert np.isfinite(start.parameter).all()
  assert (start.parameter > 0).all()
  choice = bit_choice.BitChoice(
    (8,),
    x,
    quantizer=PLUS,
    signed=True,
    temperature=bit_choice.Temperature(jnp.ones(())),
  )
  np.testing.assert_allclose(choice(x), x, rtol=1e-2)


def _arguments(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  x = jnp.asarray(_silu(600).reshape(30, 20), dtype)
  probabilities = jax.nn.softmax(jnp.asarray(rng.normal(size=3), jnp.float32))
  steps = jnp.asarray([0.6, 0.1, 1.0])
  grids = formula.Grids(
    jnp.asarray([-1.0, -3.0, 0.0]),
    jnp.asarray([2.0, 28.0, 1.0]),
    jnp.asarray([False, False, True]),
  )
  return x, steps, probabilities, grids, jnp.asarray(rng.normal(size=x.shape))


def test_gradient_of_the_shift_is_the_closed_form_and_autodiff_s():
  x, steps, probabilities, grids, g = _arguments()
  settings = mixture.Settings(0.0, "full", quantizers.SMALLEST_STEP)

  def fast(shift):
    return jnp.sum(
      g * mixture.mix(x, steps, probabilities, grids, settings, shift)
    )

  def plain(shift):
    return jnp.sum(g * formula.mixture(x, steps, probabilities, grids, shift))

  lower, upper, each_step, shares = (
    np.asarray(values)[:2, None, None]
    for values in (*grids[:2], steps, probabilities)
  )
  scaled = np.asarray(x) / each_step
  clipped = (scaled <= lower) | (scaled >= upper)
  expected = -np.sum(shares * np.asarray(g) * clipped)
  for function in (fast, plain):
    found = jax.jit(jax.grad(function))(np.float32(0.1))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_without_clipping_the_shift_gets_no_gradient_at_all(dtype):
  x, steps, probabilities, grids, g = _arguments(dtype)
  settings = mixture.Settings(0.0, "full", quantizers.SMALLEST_STEP)
  wide = grids._replace(lower=grids.lower - 300, upper=grids.upper + 300)

  def value(shift):
    mixed = mixture.mix(x, steps, probabilities, wide, settings, shift)
    return jnp.sum(g * mixed)

  assert jax.jit(jax.grad(value))(jnp.float32(0)) == 0


def test_moved_zeros_keep_the_number_of_codes():
  _, steps, _, grids, _ = _arguments()
  moved = formula.move_zeros(grids, steps, jnp.float32(0.65))
  # Of 0.6 and of 0.1, from -1 and -3, of 4 and 32 codes.
  np.testing.assert_array_equal(moved.lower[:2], [-2, -10])
  np.testing.assert_array_equal((moved.upper - moved.lower)[:2], [3, 31])
  far = formula.move_zeros(grids, steps, jnp.float32(-100))
  np.testing.assert_array_equal(far.lower[:2], [0, 0])


def test_a_wrong_zero_point_is_learned():
  x = _silu()
  choice = bit_choice.BitChoice(
    (4,),
    x,
    quantizer=PLUS,
    signed=True,
    temperature=bit_choice.Temperature(jnp.ones(())),
  )
  right = choice.grids()
  assert right.lower[0] == -1
  choice.shift[...] *= 0.2
  assert choice.grids().lower[0] == 0
  graphdef, learned, others = nnx.split(
    choice, bit_choice.QuantizerParameter, ...
  )
  optimizer = optimizers.weight_optimizer(
    steps=250,
    learning_rate=0.0,
    quantizer_learning_rate=1e-2,
    momentum=0.9,
    weight_decay=0.0,
    schedule="constant",
  )

  @jax.jit
  def step(learned, state):
    def loss(learned):
      mixed = nnx.merge(graphdef, learned["quantizers"], others)(x)
      return jnp.mean((mixed - x) ** 2)

    value, slope = jax.value_and_grad(loss)(learned)
    updates, state = optimizer.update(slope, state, learned)
    return optax.apply_updates(learned, updates), state, value

  variables = {"weights": {}, "quantizers": learned}
  state = optimizer.init(variables)
  losses = []
  for _ in range(250):
    variables, state, value = step(variables, state)
    losses.append(float(value))
  made = nnx.merge(graphdef, variables["quantizers"], others)
  assert made.grids().lower[0] == right.lower[0]
  assert losses[-1] < 0.8 * losses[0]


class Net(nnx.Module):
  """Inputs of every kind: any sign, SiLU, ReLU, GELU."""

  def __init__(self, rngs):
    self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
    self.silu = nnx.Conv(8, 8, (3, 3), strides=2, rngs=rngs)
    self.relu = nnx.Conv(8, 8, (1, 1), rngs=rngs)
    self.gelu = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, x):
    x = jax.nn.silu(2 * self.first(x))
    x = jax.nn.relu(self.silu(x))
    x = jax.nn.gelu(4 * self.relu(x)).mean(axis=(1, 2))
    return self.gelu(x)


def _searchable(example=None, **settings):
  if example is None:
    example = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
  settings = {"bits": (4, 8), "end_bits": 4, **settings}
  return asga_jax.searchable(Net(nnx.Rngs(0)), example, **settings), example


def test_only_what_may_be_negative_has_one_and_blank_examples_agree():
  model, example = _searchable()
  blank, _ = _searchable(jax.ShapeDtypeStruct(example.shape, example.dtype))
  kinds = {
    path: type(product.activation.quantizer)
    for path, product in layers.quantized_layers(model).items()
  }
  plus, plain = methods.LSQPlus, methods.LSQ
  assert kinds == {"first": plus, "silu": plus, "relu": plain, "gelu": plus}
  shapes = [jax.tree.map(jnp.shape, nnx.state(m)) for m in (model, blank)]
  assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
  zeros = -layers.quantized_layers(model)["silu"].activation.grids().lower
  # Of 255 codes; a symmetric grid would have 128 of them below zero.
  assert 0 < zeros[1] < 64
  ruled, _ = _searchable(rules=[asga_jax.Rule("silu", signed=True)])
  choice = layers.quantized_layers(ruled)["silu"].activation
  assert type(choice.quantizer) is plain
  np.testing.assert_array_equal(choice.grids().lower, [-8, -128])
  symmetric, _ = _searchable(activation_quantizer="lsq")
  choice = layers.quantized_layers(symmetric)["silu"].activation
  np.testing.assert_array_equal(choice.grids().lower, [-8, -128])


def test_weights_have_none():
  with pytest.raises(ValueError, match=r"'lsq_plus' .* for activations"):
    _searchable(weight_quantizer="lsq_plus")


@pytest.fixture(scope="module")
def fixed():
  """A network with zero points that were moved, its policy and an input."""
  model, example = _searchable(bits=4)
  for product in layers.quantized_layers(model).values():
    choice = product.activation
    if choice.shift is not None:
      choice.shift[...] += 1.2 * choice.steps()[0]
  model.eval()
  return model, policy_of(model), example


@pytest.mark.slow
def test_integers_give_what_the_network_gives(fixed):
  model, _, example = fixed
  found = integer.integer_layers(model)
  codes = found["silu"].activation
  assert -8 < codes.lower < 0
  assert codes.upper == 15 + codes.lower
  made = reference.integer_forward(model)
  np.testing.assert_allclose(made(example), model(example), atol=1e-5)


def test_a_packed_file_keeps_them(fixed, tmp_path):
  model, policy, example = fixed
  path = tmp_path / "net.safetensors"
  asga_jax.save_packed(model, policy, path)
  other, _ = _searchable(jax.ShapeDtypeStruct(example.shape, example.dtype))
  loaded = asga_jax.load_packed(other, path)
  np.testing.assert_array_equal(loaded(example), model(example))
  symmetric, _ = _searchable(activation_quantizer="lsq")
  with pytest.raises(ValueError, match=r"'LSQPlus'.*'LSQ'"):
    asga_jax.load_packed(symmetric, path)


def test_an_onnx_file_keeps_them(fixed, tmp_path):
  model, policy, example = fixed
  path = tmp_path / "net.onnx"
  asga_jax.export_onnx(model, example.shape[1:], path, policy=policy)
  session = onnxruntime.InferenceSession(path)
  name = session.get_inputs()[0].name
  (found,) = session.run(None, {name: np.asarray(example)})
  np.testing.assert_allclose(found, model(example), atol=1e-4)
