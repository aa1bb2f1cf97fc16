"""Every operation of the ONNX export, in onnxruntime, against JAX."""

import jax
import numpy as np
import onnxruntime
import pytest
from flax import nnx
from jax import lax
from jax import numpy as jnp

from asga_jax.deploy.onnx import export as onnx_export

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((3, 3, 4, 6), np.float32)
GROUPED = RNG.standard_normal((3, 2, 2, 6), np.float32)
MATRIX = RNG.standard_normal((4, 5), np.float32)
CUBE = RNG.standard_normal((7, 4, 2, 3), np.float32)
NHWC = ("NHWC", "HWIO", "NHWC")


class Function(nnx.Module):
  """A function as a network; images are [N, 6, 7, 4] and above -2."""

  def __init__(self, function):
    self.function = nnx.static(function)

  def __call__(self, x):
    return self.function(x)


def _conv(kernel, strides=(1, 1), padding="SAME", numbers=NHWC, **settings):
  return lambda x: lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=numbers, **settings
  )


def _window(start, combine, window, strides, padding, **settings):
  return lambda x: lax.reduce_window(
    x, start, combine, window, strides, padding, **settings
  )


@jax.custom_vjp
def _own_gradient(x):
  return 2 * x


_own_gradient.defvjp(lambda x: (2 * x, None), lambda _, g: (g,))

# Primitive -> functions in whose jaxpr it must occur.
CASES = {
  "abs": [jnp.abs],
  "add": [lambda x: x + x[:, :1], lambda x: 1 + x],
  "add_any": [jax.grad(lambda x: (jnp.tanh(x) * jnp.exp(x)).sum())],
  "and": [lambda x: jnp.where((x > 0) & (x < 1), x, 2.0)],
  "argmax": [lambda x: jnp.argmax(x, -1).astype(jnp.float32)],
  "argmin": [lambda x: jnp.argmin(x, 1).astype(jnp.float32)],
  "broadcast_in_dim": [
    lambda x: x + jnp.broadcast_to(x.sum(-1)[..., None], x.shape),
    lambda x: jnp.broadcast_to(MATRIX[0, :4], (x.shape[0], 1, 4)) + x[:, 0],
  ],
  "ceil": [jnp.ceil],
  "clamp": [
    lambda x: lax.clamp(-0.5, x, 0.75),
    lambda x: lax.clamp(x - 1, x * 2, x + 1),
  ],
  "concatenate": [lambda x: jnp.concatenate([x, 2 * x, x[:, :, :2]], 2)],
  "conv_general_dilated": [
    _conv(KERNEL),
    _conv(KERNEL, (2, 1), [(2, 0), (1, 3)]),
    _conv(KERNEL, padding="VALID", rhs_dilation=(2, 1)),
    _conv(GROUPED, (1, 2), feature_group_count=2),
    _conv(KERNEL.reshape(3, 3, 1, 24), feature_group_count=4),
    _conv(KERNEL, padding=[(2, 1), (0, 2)], lhs_dilation=(2, 3)),
    lambda x: _conv(KERNEL, numbers=("NCHW", "HWIO", "NCHW"))(
      x.transpose(0, 3, 1, 2)
    ),
    lambda x: _conv(KERNEL[0], (2,), "SAME", ("NWC", "WIO", "NWC"))(x[:, 1]),
    # What follows becomes part of it, but not where it is read twice.
    lambda x: -(_conv(KERNEL)(x) - 0.5) * jnp.arange(6.0) / 3 + MATRIX[0, 0],
    lambda x: (lambda y: y + nnx.relu(2 * y) * y)(_conv(KERNEL)(x)),
  ],
  "convert_element_type": [lambda x: x.astype(jnp.int32).astype(jnp.float32)],
  "copy": [lambda x: jnp.array(x, copy=True) + 1],
  "cos": [jnp.cos],
  "div": [lambda x: x / 3, lambda x: 2 / (x + 3), lambda x: x / MATRIX[0, :4]],
  "dot_general": [
    lambda x: x @ MATRIX,
    lambda x: x @ MATRIX * jnp.arange(5.0) + 1,
    lambda x: jnp.einsum("nhwc,wcad->nhad", x, CUBE),
    lambda x: jnp.einsum("co,nhwc->nohw", MATRIX, x),
    lambda x: jnp.einsum("nhwc,nhvc->nhwv", x, x),
    lambda x: jnp.einsum("nqhd,nkhd->nhqk", x, 2 * x),
    lambda x: jnp.einsum("nhqc,nhcd->nd", x, x.swapaxes(2, 3)),
    lambda x: jnp.einsum("nhwc,hwc->n", x, jnp.ones((6, 7, 4))),
    lambda x: x[:, 0, 0] @ MATRIX,
    lambda x: jnp.einsum("nwc,nac->nwa", x[:, 0], x[:, 1, :3]),
  ],
  "eq": [lambda x: (jnp.round(x[..., 0] * 0) == 0).astype(jnp.float32)],
  "erf": [lax.erf],
  "erfc": [lambda x: nnx.gelu(x, approximate=False)],
  "exp": [jnp.exp],
  "exp2": [jnp.exp2],
  "expm1": [jnp.expm1, nnx.elu],
  "floor": [jnp.floor],
  "gather": [lambda x: x[:, 2], lambda x: x[:, -1, 3]],
  "ge": [lambda x: jnp.where(x >= 0.1, x, 0)],
  "gt": [lambda x: jnp.where(x > 0.1, 1, x)],
  "integer_pow": [lambda x: x**3, lambda x: (x + 3) ** -2],
  "le": [lambda x: jnp.where(x <= 0.1, x, 0)],
  "log": [lambda x: jnp.log(x + 3)],
  "log1p": [nnx.softplus],
  "logistic": [nnx.silu],
  "lt": [lambda x: jnp.where(x < x.mean(-1, keepdims=True), x, 0)],
  "max": [nnx.relu, lambda x: jnp.maximum(x, -x), lambda x: jnp.maximum(1, x)],
  "min": [nnx.relu6, lambda x: jnp.minimum(x, MATRIX[0, :4])],
  "mul": [lambda x: x * x[:, :1], lambda x: 3 * x],
  "ne": [lambda x: (jnp.floor(x) != 0).astype(jnp.float32)],
  "neg": [lambda x: -x],
  "not": [lambda x: jnp.where(~(x > 0), x, 0)],
  "optimization_barrier": [lambda x: lax.optimization_barrier(x) + 1],
  "or": [lambda x: jnp.where((x > 1) | (x < 0), x, 2.0)],
  "pad": [lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)))],
  "pow": [lambda x: (x + 3) ** 0.7],
  "reduce_max": [lambda x: x.max((1, 3)), lambda x: nnx.softmax(x)],
  "reduce_min": [lambda x: x.min(2)],
  "reduce_prod": [lambda x: x.prod(-1)],
  "reduce_sum": [
    lambda x: x.mean((1, 2)),
    lambda x: _conv(KERNEL)(x).sum((1, 3)),
    lambda x: x.transpose(0, 3, 1, 2).sum(1),
  ],
  "reduce_window_max": [
    lambda x: nnx.max_pool(x, (2, 3), (2, 1), "SAME"),
    _window(
      -jnp.inf,
      lax.max,
      (1, 2, 2, 1),
      (1, 1, 2, 1),
      ((0, 0), (1, 0), (0, 1), (0, 0)),
      window_dilation=(1, 2, 1, 1),
    ),
  ],
  "reduce_window_sum": [
    lambda x: nnx.avg_pool(x, (2, 3), (1, 2), "SAME"),
    lambda x: nnx.avg_pool(_conv(KERNEL)(x), (2, 2), (2, 2)),
  ],
  "reshape": [
    lambda x: x.reshape(x.shape[0], -1),
    lambda x: x.reshape(-1, 4) * 2,
  ],
  "rev": [lambda x: lax.rev(x, (1, 3))],
  "round": [jnp.round],
  "rsqrt": [lambda x: lax.rsqrt(x + 3)],
  "select_n": [lambda x: jnp.where(x > 0, x, 0.1 * x)],
  "sign": [jnp.sign],
  "sin": [jnp.sin],
  "slice": [lambda x: lax.slice_in_dim(x, 1, 6, 2, 2)],
  "split": [lambda x: jnp.multiply(*jnp.split(x, 2, -1))],
  "sqrt": [lambda x: jnp.sqrt(x + 3)],
  "sharding_constraint": [
    lambda x: lax.with_sharding_constraint(
      x, jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
  ],
  "square": [jnp.square],
  "squeeze": [lambda x: lax.squeeze(x[:, :1], (1,))],
  "stack": [lambda x: jnp.stack([x, 2 * x], 1)],
  "stop_gradient": [lambda x: nnx.softmax(x)],
  "sub": [lambda x: 1 - x, lambda x: x - MATRIX[0, :4]],
  "tanh": [jnp.tanh, nnx.gelu],
  "tile": [lambda x: jnp.tile(x, (1, 2, 1, 3))],
  "transpose": [lambda x: jnp.tanh(x.transpose(0, 2, 3, 1)) + 1],
  # Calls.
  "custom_jvp_call": [nnx.relu],
  "custom_vjp_call": [_own_gradient],
  "jit": [jax.jit(jnp.tanh)],
  "remat2": [jax.checkpoint(jnp.tanh)],
}


def _export_and_compare(function, tolerance=2e-6):
  made = onnx_export.export_onnx(Function(function), (6, 7, 4))
  session = onnxruntime.InferenceSession(made.SerializeToString())
  rng = np.random.default_rng(32)
  images = np.clip(rng.standard_normal((32, 6, 7, 4), np.float32), -2, None)
  of_all = np.asarray(jax.jit(function)(images))
  for batch in (1, 3, 32):
    want = of_all[: batch * len(of_all) // 32]  # no function mixes images
    (got,) = session.run(None, {"image": images[:batch]})
    assert got.shape == want.shape
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


def names_of(jaxpr):
  """List the operations of a jaxpr and of those that it calls."""
  found = set()
  for equation in jaxpr.eqns:
    found.add(equation.primitive.name)
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        found |= names_of(inner)
  return found


@pytest.mark.parametrize(
  ("name", "index"),
  [(name, i) for name, cases in CASES.items() for i in range(len(cases))],
)
def test_operation(name, index):
  function = CASES[name][index]
  (batch,) = jax.export.symbolic_shape("batch")
  example = jax.ShapeDtypeStruct((batch, 6, 7, 4), jnp.float32)
  jaxpr = jax.make_jaxpr(function)(example).jaxpr
  assert name in names_of(jaxpr)
  _export_and_compare(function)
