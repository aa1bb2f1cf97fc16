"""Fixed indices, edges and pools in a plain session, against JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import nnx

from asga_jax.deploy.onnx import export as onnx_export
from asga_jax.deploy.onnx.values import ExportError

IMAGES = np.random.default_rng(0).normal(size=(3, 6, 6, 4)).astype(np.float32)
ROWS, COLUMNS = np.array([4, 0, 4]), np.array([1, 5, 2])


def _resize(x):
  return jax.image.resize(x, (x.shape[0], 12, 12, 4), "nearest")


def _window(x, size, pads, pool):
  pads = tuple((pad, pad) for pad in pads)
  return pool(x, (size, size), strides=(1, 1), padding=pads)


OPERATIONS = {
  "strided": lambda x: x[:, ::2, 1::3],
  "reversed": lambda x: x[:, ::-1, :, ::-1],
  "reversed by two": lambda x: x[:, 4::-2],
  "one place": lambda x: x[:, 2, -1],
  "channels": lambda x: x[..., np.array([2, 0, 3, 3])],
  "negative": lambda x: x[:, np.array([-1, 0, -6])],
  "pairs": lambda x: x[:, ROWS, COLUMNS],
  "apart": lambda x: x[:, ROWS, :, COLUMNS % 4],
  "grid": lambda x: x[:, ROWS[:, None], COLUMNS],
  "taken": lambda x: jnp.take(x, ROWS, axis=2),
  "computed": lambda x: x[
    :, jnp.argmax(x.sum((0, 2, 3))), jnp.argmin(x.sum((0, 1, 3)))
  ],
  "nearest": _resize,
  # Computed before the file is made, so in any type.
  "narrow constant": lambda x: x + jnp.bfloat16(1.01).astype(jnp.float32),
  "edge": lambda x: jnp.pad(x, ((0, 0), (1, 2), (3, 0), (0, 0)), mode="edge"),
  "edge of channels": lambda x: jnp.pad(x, [(0, 0)] * 3 + [(2, 1)], "edge"),
  "mean, wide pads": lambda x: _window(x, 2, (2, 3), nnx.avg_pool),
  "max, wide pads": lambda x: nnx.relu(_window(x, 2, (2, 0), nnx.max_pool)),
}


class Between(nnx.Module):
  """An operation between two of the network's own."""

  def __init__(self, operation):
    self.operation = operation

  def __call__(self, x):
    return self.operation(2 * x) + 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_it_gives_what_jax_gives(name):
  network = Between(OPERATIONS[name])
  made = onnx_export.export_onnx(network, IMAGES.shape[1:])
  session = onnxruntime.InferenceSession(made.SerializeToString())
  for batch in (1, 3):
    (found,) = session.run(None, {"image": IMAGES[:batch]})
    want = np.asarray(jax.jit(network)(IMAGES[:batch]))
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.parametrize(
  ("operation", "message"),
  [
    (lambda x: x[::-1], "of layer 'inner'"),
    (lambda x: jnp.take(x, 9, axis=1), "'gather'.* outside of the tensor"),
    (
      lambda x: jnp.take(x, np.array([9]), axis=1),
      "'gather'.* outside of the tensor",
    ),
    (
      lambda x: (x.astype(jnp.bfloat16) * 2).astype(jnp.float32),
      "of layer 'inner'.* in bfloat16; expected float32",
    ),
    (
      lambda x: jnp.float16(2) * x.astype(jnp.float16),
      "of layer 'inner'.* in float16; expected float32",
    ),
  ],
)
def test_what_has_no_counterpart_is_said_in_a_sentence(operation, message):
  outer = nnx.Sequential(lambda x: x)
  outer.inner = Between(operation)
  outer.layers = nnx.List([outer.inner])
  with pytest.raises(ExportError, match=message) as error:
    onnx_export.export_onnx(outer, IMAGES.shape[1:])
  assert str(error.value).startswith("the operation")


def test_an_error_of_the_runtime_is_one_sentence(monkeypatch):
  def refuse(*_):
    raise RuntimeError("no kernel\nfor node with name 'inner/Relu' here")

  monkeypatch.setattr(onnx_export.onnx_layer, "open_session", refuse)
  with pytest.raises(ExportError, match=r"at 'inner/Relu'.*no kernel for node"):
    onnx_export.export_onnx(Between(nnx.relu), IMAGES.shape[1:])


def test_a_network_in_float64_is_exported():
  with jax.enable_x64(True):
    network = Between(lambda x: x * np.array([1.0, 2.0, 3.0, 1 / 3]))
    made = onnx_export.export_onnx(network, IMAGES.shape[1:])
    want = np.asarray(network(jnp.asarray(IMAGES)))
  session = onnxruntime.InferenceSession(made.SerializeToString())
  (found,) = session.run(None, {"image": IMAGES})
  assert found.dtype == want.dtype == np.float64
  np.testing.assert_allclose(found, want, rtol=1e-12)
