"""Training at a fixed policy."""

import jax
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax import finetune
from asga_jax.quantization import fixing, layers
from asga_jax.training import loop


@pytest.fixture(scope="module")
def fixed(perceptron):
  return fixing.fix_bits(perceptron, {"hidden": (4, 8), "head": (4, 4)})


def _snapshot(model):
  return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))


def _loss(model, batches):
  model = nnx.clone(model)
  model.eval()
  loss = nnx.jit(lambda model, batch: asga_jax.cross_entropy(model, batch)[0])
  return float(np.mean([float(loss(model, batch)) for batch in batches]))


def test_training_lowers_the_loss_and_keeps_policy_and_argument(
  fixed, tiny_batches
):
  before = _snapshot(fixed)
  trained = asga_jax.train_policy(
    fixed,
    tiny_batches[:10] * 3,
    settings=asga_jax.FinetuneSettings(
      steps=30, preset="asga", learning_rate=0.1
    ),
  )
  # On images that were not trained on.
  assert _loss(trained, tiny_batches[10:]) < 0.7 * _loss(
    fixed, tiny_batches[10:]
  )
  jax.tree.map(np.testing.assert_array_equal, _snapshot(fixed), before)
  for name, bits in (("hidden", (4, 8)), ("head", (4, 4))):
    layer, start = getattr(trained, name), getattr(fixed, name)
    product, first = map(layers.product_of, (layer, start))
    found = (product.weight.candidates(), product.activation.candidates())
    assert found == ((bits[0],), (bits[1],))
    for kind in ("weight", "activation"):
      choice, old = getattr(product, kind), getattr(first, kind)
      np.testing.assert_array_equal(choice.logits[...], old.logits[...])
      assert not choice.holds_probabilities
      # Step sizes are trained.
      assert not np.array_equal(choice.parameter[...], old.parameter[...])
    assert not np.array_equal(layer.kernel[...], start.kernel[...])


@pytest.mark.parametrize(
  ("settings", "named"),
  [
    ({"preset": "asam"}, "asam"),
    ({"steps": 0}, "steps=0"),
    ({"learning_rate": -1.0}, "learning_rate=-1.0"),
    ({"sharpness": {"rho_max": 0.0}, "preset": "sam"}, "rho_max"),
  ],
)
def test_bad_settings_are_named(fixed, tiny_batches, settings, named):
  with pytest.raises(ValueError, match=named):
    asga_jax.train_policy(
      fixed, tiny_batches, settings=asga_jax.FinetuneSettings(**settings)
    )


def test_no_batches_and_a_nan_are_errors(fixed, tiny_batches):
  with pytest.raises(ValueError, match="batches are 0; expected"):
    asga_jax.train_policy(fixed, [])
  bad = {**tiny_batches[0], "image": tiny_batches[0]["image"] * np.nan}
  with pytest.raises(loop.DivergedError, match="step 1"):
    asga_jax.train_policy(
      fixed, [bad], settings=asga_jax.FinetuneSettings(steps=1)
    )


@pytest.mark.slow
def test_a_float_network_is_quantized_by_a_policy_without_a_search(
  tiny_network, tiny_searchable, tiny_batches
):
  policy = asga_jax.Policy(
    model="other",
    input_shape=(32, 32, 1),
    layers={
      path: asga_jax.policy.LayerPolicy(4, bits, 1, 1, True)
      for path, bits in zip(
        ("first", "middle", "inner", "head"), (8, 5, 32, 3), strict=True
      )
    },
    cost={
      "bops": 1,
      "bops_convention": "none",
      "size_bytes": 1,
      "budget_used": 1,
    },
    budget="bops=4bit",
    provenance={},
  )
  before = _snapshot(tiny_network)
  fixed = asga_jax.quantize(tiny_network, tiny_batches[0]["image"], policy)
  jax.tree.map(np.testing.assert_array_equal, _snapshot(tiny_network), before)
  assert layers.product_of(fixed.inner).activation.candidates() == (32,)
  assert layers.product_of(fixed.middle).activation.candidates() == (5,)
  settings = asga_jax.FinetuneSettings(steps=2, ema_decay=0.5, schedule="step")
  loss = asga_jax.make_loss(label_smoothing=0.1)
  trained = asga_jax.train_policy(fixed, tiny_batches, loss, settings=settings)
  assert layers.product_of(trained.middle).weight.candidates() == (4,)
  with pytest.raises(ValueError, match=r"quantized layers already|not fit"):
    asga_jax.quantize(tiny_searchable, tiny_batches[0]["image"], policy)


def test_an_average_that_was_not_kept_cannot_be_had(fixed):
  training = finetune.start_training(fixed)
  with pytest.raises(ValueError, match="ema_decay=0"):
    finetune.trained_model(training, training.state, averaged=True)
