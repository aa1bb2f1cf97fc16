"""What onnxruntime runs in integers, and that no prediction suffers from it."""

import collections

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx
from onnx import numpy_helper

import asga_jax
from asga_jax import data as data_lib
from asga_jax.data import batches as batches_lib
from asga_jax.deploy import integer
from asga_jax.deploy.onnx import export as onnx_export
from asga_jax.deploy.onnx import fusion as onnx_fusion
from asga_jax.deploy.onnx import layer as onnx_layer
from asga_jax.quantization import batch_norm

STEPS, BATCH = 60, 64


class Network(nnx.Module):
  """Dense, depthwise and pointwise convolutions; 8x8x1 to 10 classes."""

  def __init__(self, rngs):
    self.stem = nnx.Conv(1, 32, (3, 3), rngs=rngs)
    self.dense = nnx.Conv(32, 32, (3, 3), strides=2, rngs=rngs)
    self.depthwise = nnx.Conv(32, 32, (3, 3), feature_group_count=32, rngs=rngs)
    self.pointwise = nnx.Conv(32, 48, (1, 1), rngs=rngs)
    self.last = nnx.Conv(48, 32, (3, 3), rngs=rngs)
    self.norms = nnx.List(
      [nnx.BatchNorm(size, rngs=rngs) for size in (32, 32, 32, 48, 32)]
    )
    self.head = nnx.Linear(32, 10, rngs=rngs)

  def __call__(self, x):
    layers = self.stem, self.dense, self.depthwise, self.pointwise, self.last
    for layer, norm in zip(layers, self.norms, strict=True):
      x = nnx.relu(norm(layer(x)))
    return self.head(x.mean(axis=(1, 2)))


def _at(model, images, weight_bits, activation_bits):
  """Fix all layers at the same bits."""
  rule = asga_jax.Rule(".*", weight_bits, activation_bits)
  return asga_jax.searchable(model, images, rules=[rule])


@pytest.fixture(scope="module")
def digits():
  found = data_lib.load("digits")

  def prepare(images):
    return (images.astype(np.float32) / 255 - found.mean) / found.std

  split = data_lib.Split(found.train_images, found.train_labels)
  batches = [
    batches_lib.batch_at(split, step, batch_size=BATCH, seed=0)
    for step in range(STEPS)
  ]
  batches = [
    {"image": prepare(b["image"]).astype(np.float32), "label": b["label"]}
    for b in batches
  ]
  tested = prepare(found.test_images).astype(np.float32)
  return batches, tested, found.test_labels


@pytest.fixture(scope="module")
def trained(digits):
  """At 8 bits."""
  batches = digits[0]
  model = _at(Network(nnx.Rngs(0)), batches[0]["image"], 8, 8)
  settings = asga_jax.FinetuneSettings(steps=STEPS, learning_rate=0.1)
  model = asga_jax.train_policy(model, batches, settings=settings)
  batch_norm.reestimate_batch_norm(model, [b["image"] for b in batches[:8]])
  return model


@pytest.fixture(scope="module")
def normed(digits):
  """At 8 bits, untrained; its norms have the images' statistics."""
  batches = [batch["image"] for batch in digits[0][:8]]
  model = _at(Network(nnx.Rngs(0)), batches[0], 8, 8)
  batch_norm.reestimate_batch_norm(model, batches)
  return model


def _export(model, share=None):
  with pytest.MonkeyPatch.context() as patch:
    if share is not None:
      patch.setattr(onnx_fusion, "BIAS_SHARE", share)
    return onnx_export.export_onnx(model, (8, 8, 1))


def _in_jax(model, images):
  copy = nnx.clone(model)
  copy.eval()
  return np.asarray(nnx.jit(lambda m, x: m(x))(copy, images))


def _in_onnxruntime(made, images):
  session = onnxruntime.InferenceSession(made.SerializeToString())
  return session.run(None, {"image": images})[0]


def _kernels(made, folder):
  file = folder / "optimized.onnx"
  onnx_layer.open_session(made, optimized_path=file)
  return collections.Counter(
    node.op_type for node in onnx.load(file).graph.node
  )


def _constants(made):
  return {x.name: numpy_helper.to_array(x) for x in made.graph.initializer}


@pytest.mark.slow
def test_predictions_are_those_of_the_network(trained, digits, tmp_path):
  _, images, labels = digits
  made = _export(trained)
  want, got = _in_jax(trained, images), _in_onnxruntime(made, images)
  assert np.mean(want.argmax(1) == labels) > 0.9
  same = got.argmax(1) == want.argmax(1)
  assert np.mean(same) >= 0.995
  top1 = [np.mean(x.argmax(1) == labels) for x in (want, got)]
  assert top1[0] == pytest.approx(top1[1], abs=0.002)
  kernels = _kernels(made, tmp_path)
  # The mean reads the result of the last, in float.
  assert (kernels["QLinearConv"], kernels["Conv"]) == (1, 3)
  assert kernels["MatMulIntegerToFloat"] == 1


@pytest.mark.slow
def test_sums_of_few_products_stay_in_float(trained, tmp_path):
  kernels = _kernels(_export(trained, 10.0), tmp_path)
  # The stem adds up nine products, and so does the depthwise convolution.
  assert (kernels["QLinearConv"], kernels["Conv"]) == (1, 3)


@pytest.mark.parametrize("share", [0.005, 0.5])
def test_a_rounded_bias_moves_results_by_a_bounded_share(normed, share):
  made, exact = _export(normed, share), _export(normed, 0)
  constants = _constants(made)
  users, nodes = collections.defaultdict(list), {}
  for node in made.graph.node:
    nodes[node.output[0]] = node
    for name in node.input:
      users[name].append(node)
  wanted = {
    node.output[0]: _constants(exact)[node.input[2]]
    for node in exact.graph.node
    if node.op_type == "Conv"
  }
  shares = []
  for node in made.graph.node:
    if node.op_type != "Conv" or node.input[2] in constants:
      continue
    whole, steps = (constants[name] for name in nodes[node.input[2]].input)
    assert whole.dtype == np.int32
    (result,) = users[node.output[0]]
    moved = np.abs(whole * steps.astype(float) - wanted[node.output[0]])
    shares.append(moved.max() / constants[result.input[1]])
  assert shares
  assert 0 < max(shares) <= share
  tight = _export(normed, min(shares) / 2)
  assert tight.SerializeToString() == exact.SerializeToString()


@pytest.mark.parametrize("bits", [(8, 7), (7, 8), (4, 8), (8, 4), (2, 3)])
def test_fewer_bits_are_never_rounded(normed, digits, bits):
  model = _at(Network(nnx.Rngs(0)), digits[0][0]["image"], *bits)
  nnx.update(model, nnx.state(normed, nnx.BatchStat))
  made = _export(model, 10.0)
  assert made.SerializeToString() == _export(model, 0.0).SerializeToString()
  assert not any(
    tensor.data_type == onnx.TensorProto.INT32
    for tensor in made.graph.initializer
  )


class Pointwise(nnx.Module):
  def __init__(self, rngs):
    self.layer = nnx.Conv(16, 24, (1, 1), rngs=rngs)
    self.layer.bias[...] = jax.random.normal(rngs.params(), (24,))

  def __call__(self, x):
    return self.layer(x)


@pytest.mark.parametrize("bits", [(2, 4), (3, 8), (8, 8)])
def test_pointwise_convolutions_add_up_integers(bits, tmp_path):
  random = np.random.default_rng(0)
  images = random.standard_normal((4, 6, 6, 16), np.float32)
  model = _at(Pointwise(nnx.Rngs(0)), images, *bits)
  made = onnx_export.export_onnx(model, images.shape[1:])
  assert _kernels(made, tmp_path)["MatMulIntegerToFloat"] == 1
  layer = integer.integer_layers(model)["layer"]
  codes = np.asarray(integer.input_codes(layer.activation, images), int)
  sums = codes @ layer.codes[0, 0].astype(int)
  step = layer.weight_step.reshape(-1) * layer.activation.step.astype(float)
  want = sums * step + np.asarray(model.layer.bias[...])
  got = _in_onnxruntime(made, images)
  np.testing.assert_allclose(got, want, rtol=0, atol=3e-7 * np.abs(want).max())
