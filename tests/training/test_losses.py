"""The losses against their formulas, and optax where it has them."""

import numpy as np
import optax
import pytest

from asga_jax.training import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)).astype(np.float32)
TEACHER = RNG.normal(size=(6, 5)).astype(np.float32) * 3
LABELS = np.array([0, 4, 2, 2, 1, 3])
BATCH = {"image": LOGITS, "label": LABELS, "teacher_logits": TEACHER}


def _softmax(logits):
  shares = np.exp(np.float64(logits))
  return shares / shares.sum(axis=1, keepdims=True)


def _model(images):
  return images


def test_smoothed_labels_share_evenly():
  value, figures = losses.make_loss(label_smoothing=0.2)(_model, BATCH)
  targets = np.full((6, 5), 0.2 / 5)
  targets[np.arange(6), LABELS] += 0.8
  expected = -np.mean(np.sum(targets * np.log(_softmax(LOGITS)), axis=1))
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert figures["accuracy"] == np.mean(LOGITS.argmax(axis=1) == LABELS)


def test_without_smoothing_it_is_the_cross_entropy():
  value, _ = losses.make_loss()(_model, BATCH)
  expected, _ = losses.cross_entropy(_model, BATCH)
  np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_from_the_teacher(temperature):
  found = losses.distillation(LOGITS, TEACHER, temperature)
  student, teacher = (_softmax(x / temperature) for x in (LOGITS, TEACHER))
  divergence = np.sum(teacher * np.log(teacher / student), axis=1)
  np.testing.assert_allclose(
    found, temperature**2 * divergence.mean(), rtol=1e-5
  )
  of_optax = optax.kl_divergence(
    np.log(_softmax(LOGITS / temperature)), teacher
  )
  np.testing.assert_allclose(found, temperature**2 * of_optax.mean(), rtol=1e-5)
  assert abs(float(losses.distillation(TEACHER, TEACHER, temperature))) < 1e-5


def test_the_weight_mixes_labels_and_teacher():
  loss = losses.make_loss(
    label_smoothing=0.1, distillation_weight=0.3, temperature=2.0
  )
  value, figures = loss(_model, BATCH)
  hard, _ = losses.make_loss(label_smoothing=0.1)(_model, BATCH)
  soft = losses.distillation(LOGITS, TEACHER, 2.0)
  np.testing.assert_allclose(value, 0.7 * hard + 0.3 * soft, rtol=1e-6)
  np.testing.assert_allclose(figures["hard_loss"], hard, rtol=1e-6)
  np.testing.assert_allclose(figures["distillation_loss"], soft, rtol=1e-6)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("label_smoothing", 1.0),
    ("label_smoothing", -0.1),
    ("distillation_weight", 1.5),
    ("temperature", 0.0),
    # Of a distillation that there is not.
    ("temperature", 3.0),
  ],
)
def test_a_bad_value_is_named(name, value):
  with pytest.raises(ValueError, match=f"{name}={value}"):
    losses.make_loss(**{name: value})


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_makes_the_loss_nan(label):
  # optax counts -1 from the end, and one_hot gives no class at all.
  images = np.eye(3, dtype=np.float32)
  labels = np.array([0, label, 2])
  for loss in (losses.cross_entropy, losses.make_loss(label_smoothing=0.1)):
    value, _ = loss(lambda x: x, {"image": images, "label": labels})
    assert np.isnan(value)
    value, _ = loss(lambda x: x, {"image": images, "label": np.arange(3)})
    assert np.isfinite(value)
