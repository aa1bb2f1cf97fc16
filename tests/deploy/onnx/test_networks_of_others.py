"""Operations that networks of others hold, several to a file, against JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import test_ops
from flax import nnx
from jax import lax

import asga_jax
from asga_jax.deploy.onnx import export as onnx_export
from asga_jax.deploy.onnx import loops as onnx_loops
from asga_jax.deploy.onnx import ops as onnx_ops
from asga_jax.deploy.onnx.values import ExportError

X = np.random.default_rng(0).normal(size=(3, 6, 7, 4)).astype(np.float32)
NHWC = ("NHWC", "HWIO", "NHWC")
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 4, 2)).astype(np.float32)
GROUPED = KERNEL[:, :, :1].repeat(4, -1)
ROWS = np.array([4, 0, 4])


def _resize(method, antialias=True, height=3):
  return lambda x: jax.image.resize(
    x, (x.shape[0], height, 11, 4), method, antialias
  )


def _scattered(kernel, spread, pads, stride=1, groups=1):
  return lambda x: lax.conv_general_dilated(
    x,
    kernel,
    (stride, 1),
    pads,
    lhs_dilation=(spread, 2),
    dimension_numbers=NHWC,
    feature_group_count=groups,
  )


def _window(start, combine, window, padding="SAME", **settings):
  strides = (1, 2, 1, 1)
  return lambda x: lax.reduce_window(
    x, start, combine, window, strides, padding, **settings
  )


def _whole(x):
  return jnp.round(9 * x).astype(jnp.int32)


def _running(x):
  def turn(carry, row):
    return 0.5 * carry + row, carry + row

  rows = x.swapaxes(0, 1)
  last, each = lax.scan(turn, x[:, 0], rows, reverse=True)
  return each.swapaxes(0, 1) + last[:, None]


def _branches(x):
  which = jnp.argmax(x.sum((0, 1, 2)))
  return lax.switch(which, [jnp.abs, jnp.sin, lambda x: x, lambda x: 2 * x], x)


def _best(x):
  return jnp.take_along_axis(x, jnp.argmax(x, 1, keepdims=True), 1)


# All of a network are exported as one.
SLOW = ("resized", "sequences")
NETWORKS = {
  "resized": {
    "linear, down": _resize("linear"),
    "linear, up": _resize("linear", height=13),
    "linear, as it is": _resize("linear", False),
    "cubic": _resize("cubic"),
    "in one place": lambda x: jax.image.scale_and_translate(
      x,
      (x.shape[0], 8, 9, 4),
      (1, 2),
      jnp.array([1.5, 1.3]),
      jnp.array([0.5, -0.2]),
      "linear",
    ),
  },
  "transposed convolutions": {
    "kernel below the stride": _scattered(KERNEL[:2], 3, ((3, 2), (2, 0))),
    "strided": _scattered(KERNEL, 2, ((1, 2), (0, 2)), 2),
    "grouped": _scattered(GROUPED[..., :8], 2, ((1, 2), (2, 2)), groups=4),
    "cut": _scattered(KERNEL, 2, ((-1, 2), (2, -1))),
    "spread and cut": lambda x: lax.pad(
      x, np.float32(2), ((0, 0, 0), (1, -2, 1), (-1, 0, 2), (0, 0, 0))
    ),
  },
  "windows": {
    "min": lambda x: nnx.min_pool(x, (2, 3), (2, 1), "SAME"),
    "mean of what is there": lambda x: nnx.avg_pool(
      x, (2, 3), (2, 1), "SAME", count_include_pad=False
    ),
    "max of all axes": _window(-np.inf, lax.max, (1, 2, 2, 3)),
    "sum between": _window(
      0.0, lax.add, (1, 2, 2, 1), base_dilation=(1, 2, 3, 1)
    ),
    "far": _window(np.inf, lax.min, (1, 2, 2, 1), window_dilation=(1, 2, 3, 1)),
    "product": _window(1.0, lax.mul, (1, 2, 2, 1)),
    "from above": _window(0.5, lax.max, (1, 2, 2, 1)),
    "whole": lambda x: nnx.max_pool(_whole(x), (2, 2), (2, 1)),
  },
  "sequences": {
    "sum": lambda x: jnp.cumsum(x, 1),
    "sum from the end": lambda x: lax.cumsum(x, 2, reverse=True),
    "product": lambda x: jnp.cumprod(x, 1),
    "largest": lambda x: lax.cummax(x, 2),
    "least": lambda x: lax.cummin(x, 2, reverse=True),
    "logarithm": lambda x: lax.cumlogsumexp(x, 1),
    "loop": _running,
    "counted": lambda x: lax.fori_loop(0, 3, lambda i, c: 0.5 * c + i, x),
    "known branch": lambda x: lax.cond(True, jnp.sin, jnp.cos, x),
    "branches": _branches,
    "roll": lambda x: jnp.roll(x, (1, -3), (1, 2)),
    "repeat": lambda x: jnp.repeat(x, np.array([1, 2, 0, 1, 1, 3]), 1),
    "wrap": lambda x: jnp.pad(x, ((0, 0), (2, 1), (0, 0), (0, 0)), "wrap"),
    "reflect": lambda x: jnp.pad(
      x, ((0, 0), (2, 1), (0, 0), (0, 0)), "reflect"
    ),
    "apart": lambda x: sum(jnp.unstack(x, axis=1)),
  },
  "picked": {
    "best": _best,
    "order": lambda x: jnp.argsort(x, -1),
    "sorted": lambda x: jnp.sort(x, 1),
    "median": lambda x: jnp.median(x, 1),
    "top": lambda x: lax.top_k(x, 2)[0],
    "top's places": lambda x: lax.top_k(x, 2)[1],
    "by order": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
    "known slice": lambda x: lax.dynamic_slice_in_dim(x, 2, 3, 1),
    "slice": lambda x: lax.dynamic_slice_in_dim(
      x, jnp.argmax(x.sum((0, 2, 3))), 2, 1
    ),
    "update": lambda x: lax.dynamic_update_slice(
      x, 2 * x[:, :2, :3], (0, 3, jnp.argmax(x.sum((0, 1, 3))), 0)
    ),
    "places": lambda x: jnp.searchsorted(jnp.array([-1.0, 0, 1]), x),
    "between": lambda x: jnp.interp(
      x, jnp.array([-1.0, 0, 1]), jnp.array([0.0, 1, 4])
    ),
    "of cases": lambda x: jnp.select([x > 1, x > 0], [x, 2 * x], 3.0),
    "by number": lambda x: lax.select_n(
      jnp.clip(_whole(x), 0, 2), x, -x, 3 * x
    ),
  },
  "written": {
    "one": lambda x: x.at[:, 0].set(5.0),
    "some": lambda x: x.at[:, ROWS].add(x[:, :3]),
    "a window": lambda x: x.at[:, 1:3, ::2].mul(2.0),
    "outside": lambda x: x.at[:, np.array([1, 9])].set(7.0),
    "least": lambda x: x.at[..., 1].min(0.0),
    "largest": lambda x: x.at[..., 1].max(0.0),
    "anew": lambda x: (
      jnp.zeros((x.shape[0], 4)).at[:, ROWS].add(x[:, 0, 0, :3])
    ),
  },
  "elements": {
    **{
      f.__name__: (lambda x, f=f: f(0.1 * x))
      for f in (
        jnp.arctan,
        jnp.arcsin,
        jnp.arccos,
        jnp.tan,
        jnp.sinh,
        jnp.cosh,
        jnp.arcsinh,
        jnp.arctanh,
        jnp.cbrt,
      )
    },
    "arccosh": lambda x: jnp.arccosh(jnp.abs(x) + 1),
    "remainder": lambda x: jnp.mod(x, 0.7),
    "whole remainder": lambda x: jnp.mod(_whole(x), 3),
    "whole quotient": lambda x: _whole(x) // 3,
    "bits": lambda x: (_whole(x) & 3) | (_whole(x) ^ 5),
    "truths": lambda x: (x > 0) ^ (x > 1),
    "angle": lambda x: jnp.arctan2(x, x[..., :1] - 0.5),
    "half away": lambda x: lax.round(jnp.round(4 * x) / 2),
    "finite": lambda x: jnp.where(jnp.isfinite(1 / jnp.round(x)), x, 0),
    "any": lambda x: jnp.any(x > 1, 1),
    "all": lambda x: jnp.all(x > -1, (1, 2)),
    "numbered": lambda x: x[:, 0, 0] + jnp.arange(x.shape[0])[:, None],
    "of the batch": lambda x: x - x.mean(0),
    "first true": lambda x: jnp.argmax(x > 0.5, -1),
  },
}


def _flat(operations):
  def run(x):
    found = [operation(x) for operation in operations.values()]
    return jnp.concatenate(
      [y.astype(jnp.float32).reshape(x.shape[0], -1) for y in found], 1
    )

  return run


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in NETWORKS
  ],
)
def test_it_gives_what_jax_gives(name):
  operations = NETWORKS[name]
  made = onnx_export.export_onnx(
    test_ops.Function(_flat(operations)), (6, 7, 4)
  )
  session = onnxruntime.InferenceSession(made.SerializeToString())
  (found,) = session.run(None, {"image": X})
  want = jax.jit(lambda x: [run(x) for run in operations.values()])(X)
  start = 0
  for operation, value in zip(operations, want, strict=True):
    value = np.asarray(value, np.float32).reshape(len(X), -1)
    part = found[:, start : start + value.shape[1]]
    np.testing.assert_allclose(part, value, atol=2e-5, err_msg=operation)
    start += value.shape[1]
  assert start == found.shape[1]


def test_every_operation_has_a_case():
  (batch,) = jax.export.symbolic_shape("batch")
  example = jax.ShapeDtypeStruct((batch, 6, 7, 4), jnp.float32)
  found = set(test_ops.CASES)
  for operations in NETWORKS.values():
    found |= test_ops.names_of(jax.make_jaxpr(_flat(operations))(example).jaxpr)
  missing = {*onnx_ops.RULES, *onnx_loops.LOOPS} - found
  assert not missing


class Layers(nnx.Module):
  """Transposed convolutions, one with a kernel below its stride."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.first = nnx.Linear(4, 4, rngs=rngs)
    self.up = nnx.ConvTranspose(
      4, 4, (2, 3), (3, 2), padding=((4, 3), (1, 1)), rngs=rngs
    )
    self.turned = nnx.ConvTranspose(
      4, 4, (3, 2), (2, 1), padding="VALID", transpose_kernel=True, rngs=rngs
    )
    self.last = nnx.Linear(4, 4, rngs=rngs)

  def __call__(self, x):
    x = self.turned(nnx.relu(self.up(nnx.relu(self.first(x)))))
    return self.last(x.mean((1, 2)))


@pytest.mark.slow
def test_quantized_layers_of_every_kind():
  model = asga_jax.searchable(Layers(), X, bits=(8,))
  model.eval()
  assert not asga_jax.not_searched(model)
  made = onnx_export.export_onnx(model, X.shape[1:])
  session = onnxruntime.InferenceSession(made.SerializeToString())
  (found,) = session.run(None, {"image": X})
  want = np.asarray(nnx.jit(lambda model, x: model(x))(model, X))
  np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize(
  ("operation", "message"),
  [
    (
      lambda x: lax.while_loop(lambda c: c.sum() > 1, lambda c: c / 2, x),
      "'while' of layer",
    ),
    (lambda x: jnp.abs(jnp.fft.rfft(x, axis=2)), "'fft' of layer"),
    (lambda x: lax.map(jnp.sin, x), "it turns batch times"),
    (lambda x: lax.fori_loop(0, 999, lambda _, c: c / 2, x), "999 times"),
    (lambda x: x.at[:, jnp.argmax(x.sum((0, 2, 3)))].set(0), "it writes is"),
    (lambda x: x[:, :0], "an empty output"),
    (lambda x: None, "gives no array"),
  ],
)
def test_what_has_no_counterpart_is_said(operation, message):
  with pytest.raises(ExportError, match=message):
    onnx_export.export_onnx(test_ops.Function(operation), (6, 7, 4))


def test_one_output_in_a_container_or_without_a_batch():
  for operation in (lambda x: {"y": (x.sum(),)}, lambda x: [x.mean(0)]):
    made = onnx_export.export_onnx(test_ops.Function(operation), (6, 7, 4))
    session = onnxruntime.InferenceSession(made.SerializeToString())
    (found,) = session.run(None, {"image": X})
    (want,) = jax.tree.leaves(operation(jnp.asarray(X)))
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
