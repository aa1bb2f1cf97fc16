"""Variables that are kernels of layers, and are read elsewhere too."""

import draws
import jax
import numpy as np
import onnxruntime
import pytest
from every_kind import fix, policy_of
from flax import nnx
from safetensors import numpy as safetensors_numpy

import asga_jax
from asga_jax.quantization import layers

IDS = np.random.default_rng(0).integers(0, 8, (4, 5)).astype(np.int32)
IMAGES = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)


def _linear(inputs, outputs):
  return nnx.Linear(
    inputs, outputs, kernel_init=draws.from_numpy, rngs=nnx.Rngs(0)
  )


class Language(nnx.Module):
  """The head multiplies by the table that tokens are looked up in."""

  def __init__(self):
    self.embed = nnx.Embed(
      8, 8, embedding_init=draws.from_numpy, rngs=nnx.Rngs(0)
    )
    self.inner, self.head = _linear(8, 8), _linear(8, 8)
    self.head.kernel = self.embed.embedding

  def __call__(self, x):
    return self.head(nnx.relu(self.inner(self.embed(x))))


class ByHand(nnx.Module):
  """The network itself multiplies by the kernel of one of its layers."""

  def __init__(self):
    self.first, self.inner, self.head = (_linear(8, 8) for _ in range(3))

  def __call__(self, x):
    x = nnx.relu(self.first(x))
    return self.head(nnx.relu(self.inner(x)) + x @ self.inner.kernel[...].T)


class Transposed(nnx.Module):
  """The decoder multiplies by the encoder's kernel, its axes exchanged."""

  def __init__(self):
    self.first, self.inner = _linear(8, 8), _linear(8, 6)
    self.decoder = Decoder(self.inner.kernel)

  def __call__(self, x):
    return self.decoder(nnx.relu(self.inner(nnx.relu(self.first(x)))))


class Decoder(nnx.Module):
  def __init__(self, kernel):
    self.kernel, self.dot_general = kernel, jax.lax.dot_general

  def __call__(self, x):
    return self.dot_general(x, self.kernel[...].T, (((1,), (0,)), ((), ())))


class Swapped(Transposed):
  """The decoder sums over the other axis of the encoder's kernel."""

  def __init__(self):
    super().__init__()
    self.decoder = Summing(self.inner.kernel)


class Summing(Decoder):
  def __call__(self, x):
    return self.dot_general(x, self.kernel[...], (((1,), (1,)), ((), ())))


class ByBoth(Transposed):
  """And the network itself multiplies by what the decoder multiplies by."""

  def __init__(self):
    super().__init__()
    self.decoder = Adding(self.inner.kernel)


class Adding(Decoder):
  def __call__(self, x):
    turned = self.kernel[...].astype(np.float32).T
    numbers = (((1,), (0,)), ((), ()))
    return self.dot_general(x, turned, numbers) + x @ turned


@pytest.mark.parametrize(
  ("make", "inputs", "name", "packed"),
  [
    (Language, IDS, "embed/embedding", "inner/kernel"),
    (ByHand, IMAGES, "inner/kernel", "head/kernel"),
    (ByBoth, IMAGES, "decoder/kernel", "first/kernel"),
  ],
)
def test_they_are_stored_as_they_are(make, inputs, name, packed, tmp_path):
  network = make()
  rule = asga_jax.Rule(".*", weight_bits=(2, 4), activation_bits=8)
  model = asga_jax.searchable(network, inputs, rules=[rule])
  fixed = fix(model, 2)
  file = tmp_path / "network.safetensors"
  asga_jax.save_packed(fixed, policy_of(fixed), file)
  loaded = asga_jax.load_packed(model, file)
  np.testing.assert_array_equal(loaded(inputs), fixed(inputs))
  assert not np.allclose(loaded(inputs), network(inputs), atol=1e-2)
  arrays = safetensors_numpy.load_file(file)
  assert arrays[name].dtype == np.float32
  assert arrays[packed].dtype == np.uint8


@pytest.mark.parametrize("make", [Transposed, Swapped])
def test_a_kernel_and_its_transpose_are_one_tensor(make, tmp_path, caplog):
  network = make()
  rule = asga_jax.Rule(".*", weight_bits=(2, 4), activation_bits=8)
  with caplog.at_level("INFO"):
    model = asga_jax.searchable(network, IMAGES, rules=[rule])
  assert "'inner' and 'decoder' share the kernel" in caplog.text
  products = layers.quantized_layers(model)
  assert products["inner"].weight is products["decoder"].weight
  result = asga_jax.measure_scores(
    model, [IMAGES], budget="size=3bit", progress=False
  )
  counted = {x.path: x.weights for x in result.space.network.layers}
  assert counted == {"first": 64, "inner": 48, "decoder": 0}
  fixed = fix(model, 4)
  file = tmp_path / "network.safetensors"
  asga_jax.save_packed(fixed, policy_of(fixed), file)
  loaded = asga_jax.load_packed(model, file)
  np.testing.assert_array_equal(loaded(IMAGES), fixed(IMAGES))
  arrays = safetensors_numpy.load_file(file)
  assert arrays["decoder/kernel"].nbytes == 48 / 2
  # One step for the whole of it, as in NumPy: 15 values at most.
  kernel = np.asarray(loaded.inner.kernel[...])
  steps = kernel / np.abs(kernel[kernel != 0]).min()
  np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
  assert np.abs(steps).max() <= 8
  path = tmp_path / "network.onnx"
  asga_jax.export_onnx(fixed, IMAGES.shape[1:], path)
  session = onnxruntime.InferenceSession(path)
  (given,) = session.get_inputs()
  (found,) = session.run(None, {given.name: IMAGES})
  np.testing.assert_allclose(found, fixed(IMAGES), rtol=1e-4, atol=1e-4)
