"""The kernel of a mixture's backward pass against the form for XLA."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax.quantization import mixture as formula
from asga_jax.quantization import quantizers
from asga_jax.xla import mixture, mixture_kernel

ALL_BITS = (2, 3, 4, 5, 6, 7, 8, 32)


def _operands(shape, bits, *, signed=True, dtype=jnp.float32):
  """Makes x, g, steps that clip some elements, probabilities and grids."""
  keys = jax.random.split(jax.random.key(0))
  x, g = (jax.random.normal(key, shape).astype(dtype) for key in keys)
  grids = formula.make_grids(jnp.asarray(bits), jnp.asarray(signed), True)
  steps = 1.5 / jnp.maximum(grids.upper, 1)
  probabilities = jax.nn.softmax(0.3 * jnp.arange(len(bits)))
  return x if signed else jax.nn.relu(x), g, steps, probabilities, grids


def _settings(offset=0.0, step_gradient="full"):
  return mixture.Settings(offset, step_gradient, quantizers.SMALLEST_STEP)


def _assert_equals_the_sweep(operands, *settings):
  settings = _settings(*settings)
  found = mixture.by_kernel(*operands, settings=settings, interpret=True)
  expected = mixture.by_sweep(*operands, settings=settings)
  np.testing.assert_array_equal(found[0], expected[0])
  assert np.abs(np.asarray(found[0], np.float32)).max() > 0.1
  for new, old in zip(found[1:], expected[1:], strict=True):
    assert new.dtype == old.dtype == jnp.float32
    # Sums of thousands of terms of either sign in another order.
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-3)
    assert np.abs(old).max() > 10


@pytest.mark.parametrize(
  ("bits", "offset", "step_gradient"),
  [
    pytest.param(ALL_BITS, 0.0, "full", marks=pytest.mark.slow),
    pytest.param((2, 4, 8), 0.5, "clip", marks=pytest.mark.slow),
    ((4,), 0.5, "full"),
    pytest.param(ALL_BITS, 0.5, "clip", marks=pytest.mark.slow),
    pytest.param((2, 4, 8), 0.0, "full", marks=pytest.mark.slow),
  ],
)
def test_equals_the_form_for_xla(bits, offset, step_gradient):
  # Five programs, the last one partly outside of the tensor.
  operands = _operands((7, 31, 43), bits)
  _assert_equals_the_sweep(operands, offset, step_gradient)


def test_equals_it_for_unsigned_codes_with_many_zeros():
  operands = _operands((7, 31, 43), ALL_BITS, signed=False)
  assert np.mean(np.asarray(operands[0]) == 0) > 0.4
  _assert_equals_the_sweep(operands)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types_are_summed_in_float32(dtype):
  operands = _operands((70, 43), (2, 8), dtype=dtype)
  _assert_equals_the_sweep(operands)


def test_equals_the_formula():
  x, g, steps, probabilities, grids = _operands((70, 43), (2, 5, 32))

  def mix(x, steps, probabilities):
    return formula.mixture(x, steps, probabilities, grids)

  _, pull_back = jax.vjp(mix, x, steps, probabilities)
  dx, dsteps, dprobabilities = pull_back(g)
  found = mixture.by_kernel(
    x,
    g,
    steps,
    probabilities,
    grids,
    settings=_settings(),
    interpret=True,
  )
  np.testing.assert_allclose(found[0], dx, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found[1], dprobabilities, rtol=1e-5, atol=1e-3)
  np.testing.assert_allclose(
    found[2] * probabilities, dsteps, rtol=1e-5, atol=1e-3
  )


def _lowered(platform, dtype=jnp.float32):
  """Gives the program of a mixture's gradients, where the kernel may serve."""
  x, g, *others, grids = _operands((70, 43), (2, 8), dtype=dtype)

  def gradients(x, g, *others):
    def mix(*primals):
      return mixture.mix(*primals, grids, _settings())

    return jax.vjp(mix, x, *others)[1](g)

  with mock.patch.object(mixture_kernel, "runs", return_value=True):
    traced = jax.jit(gradients).trace(x, g, *others)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_gpu_is_given_the_kernel(dtype):
  text = _lowered("cuda", dtype)
  assert "xla.gpu.triton" in text
  assert "mixture_backward" in text


@pytest.mark.parametrize("platform", ["cpu", "tpu", "rocm"])
def test_other_platforms_are_not(platform):
  assert "triton" not in _lowered(platform)


@pytest.mark.slow
def test_a_gpu_is_given_it_in_64_bit_mode():
  with jax.enable_x64(True):
    assert "xla.gpu.triton" in _lowered("cuda")


class _Gpu:
  def __init__(self, capability):
    self.compute_capability = capability


@pytest.mark.parametrize(
  ("platform", "devices", "expected"),
  [
    ("gpu", [_Gpu("9.0")], True),
    ("gpu", [_Gpu("12.1")], True),
    ("gpu", [_Gpu("7.5")], False),
    ("gpu", [_Gpu("gfx942")], False),
    ("gpu", [object()], False),
    ("gpu", [_Gpu("9.0")] * 2, False),
    ("cpu", [object()], False),
    ("tpu", [object()], False),
  ],
)
def test_devices_that_it_serves(platform, devices, expected):
  x = jnp.zeros((256, 256))
  steps = jnp.ones(3)
  mixture_kernel._capable.cache_clear()
  try:
    with mock.patch.multiple(
      jax,
      default_backend=lambda: platform,
      devices=lambda: devices,
      device_count=lambda: len(devices),
    ):
      assert mixture_kernel.runs(x, steps) is expected
      # One step a channel, small and huge tensors and float64 are for XLA.
      assert not mixture_kernel.runs(x, jnp.ones((3, 256)))
      assert not mixture_kernel.runs(x[1:], steps)
      for shape, dtype in (((1 << 16, 1 << 15), x.dtype), (x.shape, "float64")):
        other = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        assert not mixture_kernel.runs(other, steps)
  finally:
    mixture_kernel._capable.cache_clear()
