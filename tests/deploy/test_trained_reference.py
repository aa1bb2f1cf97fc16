"""A trained network in integers: its predictions, in both arithmetics."""

import jax
import numpy as np
import optax
import pytest
from every_kind import fill
from flax import nnx

from asga_jax.data import embedded
from asga_jax.deploy import folding, reference
from asga_jax.models import resnet
from asga_jax.quantization import batch_norm, fixing, layers, surgery


@pytest.fixture(scope="module")
def trained():
  """ResNet-8 after a few steps on digits, fixed at 3 to 8 bits."""
  digits = embedded.digits()
  images = np.concatenate([digits.train_images, digits.test_images])
  images = images.astype(np.float32) / 128 - 1
  labels = np.concatenate([digits.train_labels, digits.test_labels])
  network = fill(lambda: resnet.resnet8(10, in_channels=1, rngs=nnx.Rngs(0)))
  graphdef, parameters, rest = nnx.split(network, nnx.Param, ...)
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(parameters, rest, state, batch):
    def loss(parameters):
      model = nnx.merge(graphdef, parameters, rest, copy=True)
      logits = model(batch[0])
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
      return losses.mean(), nnx.split(model, nnx.Param, ...)[2]

    gradients, rest = jax.grad(loss, has_aux=True)(parameters)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(parameters, updates), rest, state

  state = optimizer.init(parameters)
  for i in range(60):
    rows = slice(32 * i % 800, 32 * i % 800 + 32)
    parameters, rest, state = step(
      parameters, rest, state, (images[rows], labels[rows])
    )
  network = nnx.merge(graphdef, parameters, rest)
  model = surgery.make_searchable(
    network, images[:64], bits=(4, 6, 8), weight_quantizer="hwgq"
  )
  paths = list(layers.quantized_layers(model))
  bits = {
    path: (8, 8) if path in ("stem", "head") else ((4, 6, 8)[i % 3], 8)
    for i, path in enumerate(paths)
  }
  model = fixing.fix_bits(model, bits)
  batch_norm.reestimate_batch_norm(model, [images[:256]])
  model.eval()
  return model, images[800:], labels[800:]


@pytest.mark.slow
def test_predictions_agree_end_to_end(trained):
  model, images, labels = trained
  folds = folding.find_folds(model, images[:2])
  assert len(folds) == 9
  made = reference.integer_forward(model, folds=folds, arithmetic="float32")
  run = jax.jit(lambda graph, state, x: nnx.merge(graph, state)(x))
  expected = run(*nnx.split(model), images).argmax(axis=-1)
  found = run(*nnx.split(made), images).argmax(axis=-1)
  assert (expected == labels).mean() > 0.8
  assert (found == expected).mean() >= 0.995


@pytest.mark.slow
def test_both_arithmetics_sum_the_same(trained):
  model, images, _ = trained
  told = [
    reference.accumulators(model, images[:4], arithmetic=arithmetic)[1]
    for arithmetic in reference.ARITHMETICS
  ]
  assert len(told[0]) == 10
  for a, b in zip(*told, strict=True):
    assert a.path == b.path
    np.testing.assert_array_equal(a.accumulator, b.accumulator)
