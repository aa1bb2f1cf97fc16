"""Networks that others write: searched, fixed, exported, compared."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import zoo_images as images
import zoo_sequences as sequences
from flax import nnx

import asga_jax
from asga_jax.deploy.onnx import values as onnx_values

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(8, 16, 16, 3)).astype(np.float32)
IDS = RNG.integers(0, 32, (8, 6)).astype(np.int32)
WAVES = RNG.normal(size=(8, 64, 1)).astype(np.float32)
LABELS = (np.arange(8) % 4).astype(np.int32)

# The network, its input, how many layers are searched, what is not and begins
# so, and why there is no ONNX file.
ZOO = {
  "ResNet-50": (images.ResNet, IMAGES, 10, (), None),
  "VGG-19": (images.VGG, IMAGES, 5, (), None),
  "ViT-B/16": (images.ViT, IMAGES, 14, ("blocks/",), None),
  "EfficientNet-B0": (images.EfficientNet, IMAGES, 12, (), None),
  "ConvNeXt": (images.ConvNeXt, IMAGES, 8, (), None),
  "DenseNet": (images.DenseNet, IMAGES, 6, (), None),
  "U-Net": (images.UNet, IMAGES, 12, (), None),
  "decoder": (
    sequences.Decoder,
    IDS,
    14,
    ("blocks/", "embed", "(the network"),
    None,
  ),
  "LSTM": (sequences.Tagger, IDS, 3, ("embed",), None),
  "audio": (sequences.Audio, WAVES, 8, (), None),
}


def _classes(model, batch):
  logits = model(batch["x"])[:, :4]
  found = jax.nn.log_softmax(logits)
  return -jnp.mean(jnp.sum(jax.nn.one_hot(batch["y"], 4) * found, -1)), {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_a_network_of_others(name):
  make, x, count, beside, why_not = ZOO[name]
  net = make(nnx.Rngs(0))
  model = asga_jax.searchable(net, x, bits=(4, 8))
  network, _ = model.deployed_network
  assert len(network.paths) == count
  left = asga_jax.not_searched(model)
  assert all(path.startswith(beside) for path in left), left
  result = asga_jax.search_policy(
    model,
    [{"x": x, "y": LABELS}] * 2,
    _classes,
    budget="bops=6bit",
    settings=asga_jax.SearchSettings(steps=2),
    progress=False,
  )
  policy = asga_jax.allocate(result)
  fixed = asga_jax.with_policy(result.model, policy, batches=[x])
  want = np.asarray(nnx.jit(lambda model, x: model(x))(fixed, x))
  assert np.isfinite(want).all()
  if why_not is not None:
    with pytest.raises(onnx_values.ExportError, match=why_not):
      asga_jax.export_onnx(fixed, x.shape[1:])
    return
  made = asga_jax.export_onnx(fixed, x.shape[1:])
  session = onnxruntime.InferenceSession(
    made.SerializeToString(), providers=["CPUExecutionProvider"]
  )
  (found,) = session.run(None, {"image": x})
  apart = np.linalg.norm(found - want, axis=-1)
  assert np.median(apart / np.linalg.norm(want, axis=-1)) < 1e-3
