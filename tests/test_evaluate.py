"""Evaluation against scikit-learn and NumPy."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn import metrics

from asga_jax import evaluate
from asga_jax.data import dataset as dataset_lib
from asga_jax.training import sharding

CLASSES = 8


class Table(nnx.Module):
  """Reads its logits from the pixels."""

  def __call__(self, images):
    return images[:, 0, :, 0]


def _prepare(key, batch):
  del key
  return {**batch, "image": (batch["image"] - 100.0) / 20}


@pytest.fixture(scope="module")
def split():
  rng = np.random.default_rng(0)
  # Without ties, in which scikit-learn counts otherwise.
  images = rng.permuted(np.tile(np.arange(256), (103, 1)), axis=1)
  images = images[:, :CLASSES].reshape(103, 1, CLASSES, 1).astype(np.uint8)
  return dataset_lib.Split(images, rng.integers(0, CLASSES, 103, np.int32))


def test_figures_are_those_of_scikit_learn(split):
  found = evaluate.evaluate(Table(), split, _prepare, batch_size=25)
  logits = (split.images[:, 0, :, 0] - 100.0) / 20
  shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  classes = np.arange(CLASSES)
  assert found.images == 103
  for k, value in ((1, found.top1), (5, found.top5)):
    expected = metrics.top_k_accuracy_score(
      split.labels, logits, k=k, labels=classes
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(
    found.loss, metrics.log_loss(split.labels, shares, labels=classes), 1e-5
  )
  np.testing.assert_array_equal(
    found.confusion,
    metrics.confusion_matrix(
      split.labels, logits.argmax(axis=1), labels=classes
    ),
  )
  assert np.trace(found.confusion) / 103 == pytest.approx(found.top1)
  # One for each image, without the padding of the last batch.
  np.testing.assert_array_equal(
    found.correct, logits.argmax(axis=1) == split.labels
  )


def test_only_the_first_batches(split):
  found = evaluate.evaluate(Table(), split, _prepare, batch_size=25, batches=2)
  right = split.images[:50, 0, :, 0].argmax(axis=1) == split.labels[:50]
  assert found.images == found.confusion.sum() == 50
  assert found.top1 == pytest.approx(right.mean())
  assert evaluate.accuracy(
    Table(), split, _prepare, batch_size=25, batches=2
  ) == pytest.approx(right.mean())


def test_equal_logits_count_for_the_first_class():
  images = np.full((CLASSES, 1, CLASSES, 1), 7, np.uint8)
  split = dataset_lib.Split(images, np.arange(CLASSES, dtype=np.int32))
  found = evaluate.evaluate(Table(), split, _prepare, batch_size=4)
  assert (found.top1, found.top5) == (1 / CLASSES, 5 / CLASSES)
  assert found.loss == pytest.approx(np.log(CLASSES))


def test_nan_is_wrong_and_shows_in_the_loss(split):
  def spoil(key, batch):
    return {**batch, "image": _prepare(key, batch)["image"] * jnp.nan}

  found = evaluate.evaluate(Table(), split, spoil)
  assert (found.top1, found.top5) == (0, 0)
  assert np.isnan(found.loss)


def test_shares_of_processes_sum_to_the_whole(split):
  """Of three processes the last has no batch where there are two."""
  for size in (25, 60):
    whole = evaluate.evaluate(Table(), split, _prepare, batch_size=size)
    shares = []

    def summed(own, shares=shares):
      shares.append(own)
      return jax.tree.map(
        lambda *of: np.sum(of, axis=0, dtype=of[0].dtype), *shares
      )

    with mock.patch.object(jax, "process_count", return_value=3):
      for index in range(3):
        with (
          mock.patch.object(jax, "process_index", return_value=index),
          mock.patch.object(sharding, "summed", summed),
        ):
          last = evaluate.evaluate(Table(), split, _prepare, batch_size=size)
    np.testing.assert_array_equal(last.confusion, whole.confusion)
    np.testing.assert_array_equal(last.correct, whole.correct)
    assert (last.images, last.top1) == (103, whole.top1)
    assert last.loss == pytest.approx(whole.loss)
    # Each image in one share at most, and those of the last only if it has any.
    counted = [share.counted.sum() for share in shares]
    assert sum(counted) == 103
    assert (counted[2] > 0) == (size == 25)
