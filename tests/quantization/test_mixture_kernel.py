"""The kernel of a mixture's backward pass against the form for XLA."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax.quantization import mixture as mixture_lib
from asga_jax.quantization import mixture_kernel


def _gradients(x, g, bits, offset, step_gradient):
  grids = mixture_lib.make_grids(jnp.asarray(bits), jnp.asarray(True), True)
  steps = 1.5 / jnp.maximum(grids.upper, 1)
  probabilities = jax.nn.softmax(0.3 * jnp.arange(len(bits)))

  def mix(x, steps, probabilities):
    return mixture_lib.mixture(
      x, steps, probabilities, grids, offset, step_gradient
    )

  return jax.vjp(mix, x, steps, probabilities)[1](g)


@pytest.fixture
def interpreted():
  """Serves every tensor by the kernel, run without a GPU."""
  run = functools.partial(mixture_kernel.gradients, interpret=True)
  with mock.patch.multiple(
    mixture_kernel, gradients=run, runs=lambda x, steps: True
  ):
    yield


def _inputs(shape, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0))
  return tuple(jax.random.normal(key, shape).astype(dtype) for key in keys)


@pytest.mark.parametrize("bits", [(4,), (2, 4, 8), (2, 3, 4, 5, 6, 7, 8, 32)])
@pytest.mark.parametrize(
  ("offset", "step_gradient"), [(0.0, "full"), (0.5, "clip"), (0.5, "full")]
)
def test_equals_the_form_for_xla(bits, offset, step_gradient, interpreted):
  # Five programs, the last one partly outside of the tensor.
  arguments = (*_inputs((7, 31, 43)), bits, offset, step_gradient)
  found = _gradients(*arguments)
  with mock.patch.object(mixture_kernel, "runs", return_value=False):
    expected = _gradients(*arguments)
  np.testing.assert_array_equal(found[0], expected[0])
  for new, old in zip(found[1:], expected[1:], strict=True):
    # Sums of 9331 terms in another order.
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-3)
    assert np.abs(old).max() > 10


def test_bfloat16_is_summed_in_float32(interpreted):
  x, g = _inputs((70, 43), jnp.bfloat16)
  found = _gradients(x, g, (2, 8), 0.0, "full")
  assert [part.dtype for part in found] == [
    jnp.bfloat16,
    jnp.float32,
    jnp.float32,
  ]
  wide = (x.astype(jnp.float32), g.astype(jnp.float32))
  expected = _gradients(*wide, (2, 8), 0.0, "full")
  np.testing.assert_array_equal(found[0], expected[0].astype(jnp.bfloat16))
  for new, old in zip(found[1:], expected[1:], strict=True):
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_a_gpu(dtype):
  run = functools.partial(
    mixture_kernel.gradients, offset=0.5, step_gradient="full"
  )
  x, g = _inputs((70, 43), dtype)
  traced = jax.jit(run).trace(x, g, jnp.ones((6, 3)))
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "xla.gpu.triton" in text
  assert "mixture_backward" in text


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
      # One step a channel, small tensors and float64 are left to XLA.
      assert not mixture_kernel.runs(x, jnp.ones((3, 256)))
      assert not mixture_kernel.runs(x[1:], steps)
      wide = jax.ShapeDtypeStruct(x.shape, jnp.float64)
      assert not mixture_kernel.runs(wide, steps)
  finally:
    mixture_kernel._capable.cache_clear()
