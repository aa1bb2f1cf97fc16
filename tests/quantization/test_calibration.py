"""Initial ranges and signedness, and batch norm's statistics."""

import draws
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asga_jax.network import examples, program
from asga_jax.quantization import (
  batch_norm,
  calibration,
  fixing,
  layers,
  methods,
  surgery,
)
from asga_jax.quantization import rules as rules_lib


class Net(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.conv = nnx.Conv(3, 8, (3, 3), kernel_init=draws.from_numpy, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.middle = nnx.Linear(8, 8, kernel_init=draws.from_numpy, rngs=rngs)
    self.head = nnx.Linear(8, 4, kernel_init=draws.from_numpy, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x)))
    x = self.dropout(x).mean(axis=(1, 2))
    return self.head(self.middle(x))


def _net():
  model = Net()
  model.eval()
  return model


def _x(seed=0, size=16):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(size, 6, 6, 3)), jnp.float32)


# What is no part of a calibration.
_OTHERS = nnx.Any(nnx.RngState, program.Unsaved)


def _leaves(model):
  return [
    np.asarray(leaf)
    for leaf in jax.tree.leaves(nnx.state(model, nnx.Not(_OTHERS)))
  ]


_product = layers.product_of


def _gather(model, x, **settings):
  return calibration.gather(model, examples.as_example(x), **settings).inputs


def test_statistics_of_what_layers_read():
  model, x = _net(), _x()
  found = _gather(model, x)
  assert list(found) == ["conv", "middle", "head"]
  assert [s.signed for s in found.values()] == [True, False, True]
  values = np.asarray(x, np.float64)
  assert found["conv"].size == x.size
  assert found["conv"].lowest == np.asarray(x).min()
  assert found["conv"].highest == np.asarray(x).max()
  # A bin is a 2^-16 of the range, or twice that.
  np.testing.assert_allclose(
    found["conv"].second_moment, np.mean(values**2), rtol=1e-3
  )


def test_all_batches_are_pooled():
  model = _net()
  batches = [_x(0), 100 * _x(1), 0.01 * _x(2)]
  found = _gather(model, batches[0], batches=batches[1:])["conv"]
  every = np.concatenate([np.asarray(x).ravel() for x in batches])
  assert (found.size, found.highest) == (every.size, every.max())
  steps = np.abs(every).max() / 127 * np.linspace(0.05, 1, 20)
  errors = [_error(every.astype(np.float64), s, -128, 127) for s in steps]
  np.testing.assert_allclose(
    found.errors(steps, 255)[:, 128] / every.size, errors, rtol=1e-2
  )


def test_statistics_of_a_quantized_network_are_those_of_the_float_one():
  model, x = _net(), _x()
  quantized = surgery.make_searchable(model, x, bits=(2,), end_bits=2)
  expected = _gather(model, x)
  for path, found in _gather(quantized, x).items():
    want = expected[path]
    np.testing.assert_allclose(found.lowest, want.lowest, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.second_moment, want.second_moment, 1e-4)


def test_one_negative_value_is_enough_for_a_sign():
  x = jnp.abs(_x())
  assert not _gather(_net(), x)["conv"].signed
  x = x.at[7, 3, 2, 1].set(-1e-3)
  assert _gather(_net(), x)["conv"].signed


def _error(values, step, lower, upper):
  code = np.clip(np.round(values / step), lower, upper)
  return np.mean((code * step - values) ** 2)


def test_steps_start_near_the_optimum():
  model, x = _net(), _x(size=64)
  bits = (2, 4, 8)
  found = surgery.make_searchable(model, x, bits=bits, end_bits=bits)
  inputs = np.asarray(x).ravel()
  kernel = np.asarray(model.conv.kernel[...]).reshape(-1, 8)
  for index, bit in enumerate(bits):
    half = 2 ** (bit - 1)
    product = _product(found.conv)
    cases = [(inputs, product.activation.parameter[...][index], -half)]
    steps = product.weight.parameter[...][index]
    cases += [
      (kernel[:, channel], steps[channel], 1 - half) for channel in range(8)
    ]
    for values, step, lower in cases:
      grid = np.abs(values).max() / (half - 1) * np.linspace(0.01, 1, 300)
      best = min(_error(values, s, lower, half - 1) for s in grid)
      # A sample of the inputs misses some of their range, and at 8 bits the
      # error of 27 values is jagged.
      limit = 1.15 if bit < 8 else 1.6
      assert _error(values, float(step), lower, half - 1) < limit * best


def test_calibrate():
  model, x = _net(), _x()
  # Calibrated on inputs of another scale and without a sign.
  before = surgery.make_searchable(model, jnp.abs(x) / 100)
  assert _product(before.conv).activation.grids().lower.max() == 0
  leaves = _leaves(before)
  after = calibration.calibrate(before, x)
  expected = surgery.make_searchable(model, x)
  for new, old in zip(_leaves(after), _leaves(expected), strict=True):
    np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-6)
  for new, old in zip(_leaves(before), leaves, strict=True):
    np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("signed", [True, False])
def test_a_rule_keeps_its_sign_through_calibrations(signed):
  rule = rules_lib.Rule("conv", signed=signed)
  shape = jax.ShapeDtypeStruct(_x().shape, jnp.float32)
  for example in (_x(), jnp.abs(_x()), shape):
    model = surgery.make_searchable(_net(), example, rules=[rule])
    for again in (model, calibration.calibrate(model, jnp.abs(_x()))):
      lower = _product(again.conv).activation.grids().lower
      assert bool(lower.max() < 0) == signed


@pytest.mark.parametrize("quantizer", sorted(methods.QUANTIZERS))
def test_a_network_made_of_shapes_is_calibrated_later(quantizer):
  model, x = _net(), _x()
  settings = {
    "weight_quantizer": quantizer.removesuffix("_plus"),
    "activation_quantizer": quantizer,
    "tie_shared_inputs": True,
  }
  shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
  blank = surgery.make_searchable(model, shape, **settings)
  expected = surgery.make_searchable(model, x, **settings)
  assert nnx.split(blank)[0] == nnx.split(expected)[0]
  found = _leaves(calibration.calibrate(blank, x))
  for new, old in zip(found, _leaves(expected), strict=True):
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)


def test_calibrate_takes_the_weights_as_they_are_now():
  model = surgery.make_searchable(_net(), _x())
  step = np.asarray(_product(model.middle).weight.parameter[...])
  model.middle.kernel[...] *= 10
  again = calibration.calibrate(model, _x())
  np.testing.assert_allclose(
    _product(again.middle).weight.parameter[...], 10 * step, rtol=1e-4
  )


def test_calibrate_a_fixed_network():
  model = surgery.make_searchable(_net(), _x())
  bits = {path: (8, 8) for path in layers.quantized_layers(model)}
  fixed = fixing.fix_bits(model, bits)
  again = calibration.calibrate(fixed, _x())
  for new, old in zip(_leaves(again), _leaves(fixed), strict=True):
    np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-6)


def test_batch_norm_statistics_are_those_of_all_batches_together():
  model = _net()
  model.norm.mean[...] += 100.0
  model.norm.var[...] *= 50.0
  model.train()
  batches = [_x(seed, size) for seed, size in [(1, 16), (2, 16), (3, 8)]]
  batches[1] += 3.0  # The means of the batches differ.
  outputs = [np.asarray(model.conv(x)).reshape(-1, 8) for x in batches]
  every = np.concatenate(outputs).astype(np.float64)
  assert batch_norm.reestimate_batch_norm(model, iter(batches)) == 3
  np.testing.assert_allclose(
    model.norm.mean[...], every.mean(axis=0), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(model.norm.var[...], every.var(axis=0), rtol=1e-4)
  assert model.norm.momentum == 0.99
  # Left in evaluation mode.
  assert model.norm.use_running_average
  assert model.dropout.deterministic


class _Stacked(nnx.Module):
  """A norm after dropout: its statistics tell whether units were dropped."""

  def __init__(self):
    self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

  def __call__(self, x):
    return self.norm(self.dropout(x))


def test_batch_norm_is_reestimated_without_dropout():
  model = _Stacked()
  x = 5 + _x()
  batch_norm.reestimate_batch_norm(model, [x])
  np.testing.assert_allclose(
    model.norm.var[...], np.var(x, axis=(0, 1, 2)), rtol=1e-3
  )


def test_batch_norm_without_batches_or_without_norms():
  model = _net()
  before = _leaves(model)
  assert batch_norm.reestimate_batch_norm(model, []) == 0
  for new, old in zip(_leaves(model), before, strict=True):
    np.testing.assert_array_equal(new, old)
  linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
  assert batch_norm.reestimate_batch_norm(linear, [_x()]) == 0


class Behind(nnx.Module):
  """Has an axis of its own behind that of the batch."""

  def __init__(self):
    self.layer = nnx.Linear(
      8, 4, kernel_init=draws.from_numpy, rngs=nnx.Rngs(0)
    )

  def __call__(self, x):
    return self.layer(x[:, None])[:, 0]


def test_an_axis_behind_the_batch_is_none_in_front_of_it():
  example = examples.as_example(np.ones((4, 8), np.float32))
  assert list(calibration.gather(Behind(), example).inputs) == ["layer"]
  alone = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
  example = examples.as_example(np.ones((8, 8, 3), np.float32))
  with pytest.raises(ValueError, match="finds no batch axis"):
    calibration.gather(alone, example)
