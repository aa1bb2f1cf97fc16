"""The convolutions for CPUs against `jax.lax`."""

import functools
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax import numpy as jnp

from asga_jax import models
from asga_jax.quantization.layers import product_of
from asga_jax.xla import lowering

pytestmark = pytest.mark.skipif(
  jax.default_backend() != "cpu", reason="the lowering is for CPU alone"
)

_NHWC = ("NHWC", "HWIO", "NHWC")


def _uses_convolution(lhs, rhs, **settings):
  text = str(
    jax.make_jaxpr(
      lambda lhs, rhs: lowering.conv_general_dilated(lhs, rhs, **settings)
    )(lhs, rhs)
  )
  return "conv_general_dilated" in text


@pytest.mark.parametrize(
  "settings",
  [
    {"window_strides": (1, 1), "padding": "SAME"},
    {"window_strides": (2, 2), "padding": ((1, 1), (1, 1))},
    {"window_strides": (2, 3), "padding": "VALID"},
    {"window_strides": (2, 1), "padding": ((2, 0), (-1, 1))},
    {"window_strides": (2, 1), "padding": "SAME", "rhs_dilation": (1, 2)},
  ],
  ids=str,
)
@pytest.mark.parametrize(
  "window",
  [(3, 3), (1, 1), pytest.param((2, 5), marks=pytest.mark.slow)],
  ids=str,
)
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_dense_equals_lax_in_value_and_gradients(settings, window, batch):
  keys = jax.random.split(jax.random.key(1), 2)
  lhs = jax.random.normal(keys[0], (batch, 11, 12, 5))
  rhs = jax.random.normal(keys[1], (*window, 5, 7))

  def both(function):
    def loss(lhs, rhs):
      out = function(lhs, rhs, dimension_numbers=_NHWC, **settings)
      return jnp.sum(out**3), out

    gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(gradients)(lhs, rhs)

  (_, our_out), ours = both(lowering.conv_general_dilated)
  (_, their_out), theirs = both(lax.conv_general_dilated)
  np.testing.assert_allclose(our_out, their_out, rtol=1e-5, atol=1e-5)
  for our, their in zip(ours, theirs, strict=True):
    scale = float(jnp.abs(their).max())
    np.testing.assert_allclose(our, their, rtol=0, atol=1e-5 * scale)


def test_gradients_of_dense_convolutions_are_in_the_layout_of_the_cpu():
  lhs, rhs = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))

  def loss(lhs, rhs):
    return jnp.sum(
      lowering.conv_general_dilated(
        lhs, rhs, (2, 2), "SAME", dimension_numbers=_NHWC
      )
      ** 2
    )

  text = jax.jit(jax.grad(loss, (0, 1))).lower(lhs, rhs).as_text()
  layouts = re.findall(r"dim_numbers = (.*?), window", text)
  assert layouts == ["[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"] * 3


def test_networks_are_given_the_fast_form():
  model = models.constructor("resnet8")(
    10,
    stem="small",
    conv_general_dilated=lax.conv_general_dilated,
    rngs=nnx.Rngs(0),
  )
  own = functools.partial(lax.conv_general_dilated)
  model.stem.conv_general_dilated = own
  fast = lowering.with_fast_convolutions(model)
  products = [
    module.conv_general_dilated
    for _, module in nnx.iter_modules(fast)
    if isinstance(module, nnx.Conv)
  ]
  assert products.count(lowering.conv_general_dilated) == len(products) - 1
  assert fast.stem.conv_general_dilated is own
  assert model.head is not fast.head
  assert all(
    module.conv_general_dilated is not lowering.conv_general_dilated
    for _, module in nnx.iter_modules(model)
    if isinstance(module, nnx.Conv)
  )


class _Own(nnx.Module):
  """A stranger's layer that holds the function under a name of its own."""

  def __init__(self):
    self.convolve = lax.conv_general_dilated


def test_whatever_holds_the_function_is_given_the_fast_form_and_it_is_undone(
  tiny_searchable,
):
  network = nnx.Dict(own=_Own(), quantized=nnx.clone(tiny_searchable))
  fast = lowering.with_fast_convolutions(network)
  assert fast.own.convolve is lowering.conv_general_dilated
  assert (
    product_of(fast.quantized.middle).float_product
    is lowering.conv_general_dilated
  )
  assert network.own.convolve is lax.conv_general_dilated
  lowering.use_lax_convolutions(fast)
  assert fast.own.convolve is lax.conv_general_dilated
  assert (
    product_of(fast.quantized.middle).float_product is lax.conv_general_dilated
  )


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch, caplog):
  known = dict(lowering.CPU_OPTIONS)
  monkeypatch.setattr(
    lowering, "CPU_OPTIONS", {"xla_cpu_invented": True, **known}
  )
  with caplog.at_level("INFO", logger="absl"):
    for _ in range(2):
      options = lowering.compiler_options()
  assert options == known
  said = [line for line in caplog.messages if "xla_cpu_invented" in line]
  assert len(said) == 1
  step = jax.jit(lambda x: x + 1, compiler_options=options)
  assert step(1.0) == 2


@pytest.mark.parametrize(
  ("lhs_shape", "rhs_shape", "settings"),
  [
    ((2, 6, 6, 4), (3, 3, 4, 8), {"feature_group_count": 1}),
    ((2, 6, 6, 4), (3, 3, 2, 8), {"feature_group_count": 2}),
    ((2, 6, 6, 4), (3, 3, 1, 8), {"feature_group_count": 4}),
    (
      (2, 6, 6, 4),
      (3, 3, 1, 4),
      {"feature_group_count": 4, "lhs_dilation": (2, 1)},
    ),
    (
      (2, 6, 6, 4),
      (3, 3, 1, 4),
      {"feature_group_count": 4, "preferred_element_type": jnp.float32},
    ),
    (
      (2, 4, 6, 6),
      (4, 1, 3, 3),
      {"feature_group_count": 4, "dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    ),
  ],
  ids=["dense", "grouped", "multiplier", "transposed", "preferred", "NCHW"],
)
def test_any_other_convolution_is_that_of_lax(lhs_shape, rhs_shape, settings):
  lhs = jax.random.normal(jax.random.key(0), lhs_shape)
  rhs = jax.random.normal(jax.random.key(1), rhs_shape)
  settings = {
    "window_strides": (1, 1),
    "padding": "SAME" if "lhs_dilation" not in settings else ((1, 1), (1, 1)),
    "dimension_numbers": _NHWC,
    **settings,
  }
  assert _uses_convolution(lhs, rhs, **settings)
  np.testing.assert_array_equal(
    lowering.conv_general_dilated(lhs, rhs, **settings),
    lax.conv_general_dilated(lhs, rhs, **settings),
  )


def test_other_platforms_get_lax(monkeypatch):
  lhs, rhs = jnp.ones((2, 9, 8, 6)), jnp.ones((3, 3, 1, 6))
  settings = {
    "window_strides": (1, 1),
    "padding": "SAME",
    "dimension_numbers": _NHWC,
    "feature_group_count": 6,
  }
  assert not _uses_convolution(lhs, rhs, **settings)
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert _uses_convolution(lhs, rhs, **settings)


@pytest.mark.slow
def test_gradients_of_narrow_1x1_kernels_are_summed_in_float32():
  keys = jax.random.split(jax.random.key(2), 3)
  lhs = jax.random.uniform(keys[0], (64, 16, 16, 4), jnp.bfloat16)
  rhs = jax.random.normal(keys[1], (1, 1, 4, 3), jnp.bfloat16)
  grad = jax.random.uniform(keys[2], (64, 16, 16, 3), jnp.bfloat16)

  def slope(lhs, rhs, grad):
    def convolve(rhs):
      return lowering.conv_general_dilated(
        lhs, rhs, (1, 1), "SAME", dimension_numbers=_NHWC
      )

    return jax.vjp(convolve, rhs)[1](grad)[0]

  found = jax.jit(slope)(lhs, rhs, grad)
  assert found.dtype == jnp.bfloat16
  exact = np.einsum(
    "nhwc,nhwo->co", np.asarray(lhs, np.float64), np.asarray(grad, np.float64)
  )
  # Half a unit in the last of bfloat16's eight places, and a little.
  np.testing.assert_allclose(
    np.asarray(found[0, 0], np.float64), exact, rtol=1.1 * 2**-9
  )
