"""Batches by position."""

import numpy as np
import pytest

from asga_jax.data import batches, embedded
from asga_jax.data import dataset as dataset_lib


def _split(count):
  numbers = np.arange(count)
  images = np.zeros((count, 2, 2, 1), np.uint8)
  images[:] = (numbers % 256)[:, None, None, None]
  return dataset_lib.Split(images, numbers.astype(np.int32))


def _epoch(split, epoch, batch_size, seed):
  steps = batches.steps_per_epoch(len(split), batch_size)
  return np.concatenate(
    [
      batches.batch_at(
        split, epoch * steps + step, batch_size=batch_size, seed=seed
      )["label"]
      for step in range(steps)
    ]
  )


def test_an_epoch_goes_once_through_the_split():
  split = _split(12)
  assert batches.steps_per_epoch(len(split), 4) == 3
  first, second = (_epoch(split, epoch, 4, 0) for epoch in (0, 1))
  for seen in (first, second):
    np.testing.assert_array_equal(np.sort(seen), np.arange(12))
  assert (first != second).any()
  assert (first != _epoch(split, 0, 4, 1)).any()


def test_the_incomplete_batch_is_left_out():
  split = _split(14)
  assert batches.steps_per_epoch(len(split), 4) == 3
  assert len(set(_epoch(split, 0, 4, 0))) == 12


def test_any_step_is_had_without_those_before():
  split = _split(50)
  settings = {"batch_size": 7, "seed": 3}
  straight = [
    batches.batch_at(split, step, **settings)["label"] for step in range(30)
  ]
  batches._permutation.cache_clear()
  for step in (29, 7, 20, 0):
    np.testing.assert_array_equal(
      batches.batch_at(split, step, **settings)["label"], straight[step]
    )


def test_images_and_labels_go_together():
  batch = batches.batch_at(_split(40), 3, batch_size=8, seed=0)
  assert batch["image"].dtype == np.uint8
  assert batch["label"].dtype == np.int32
  np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


def test_statistics_go_with_each_image_in_the_shapes_foretold():
  dataset = embedded.digits()
  split = dataset_lib.Split(dataset.train_images, dataset.train_labels)
  raw = batches.batch_at(split, 0, batch_size=6, seed=0)
  batch = {**raw, **batches.statistics(dataset, 6)}
  pixels = dataset.train_images / 255
  np.testing.assert_allclose(batch["mean"], pixels.mean(), rtol=1e-6)
  np.testing.assert_allclose(batch["std"], pixels.std(), rtol=1e-6)
  foretold = batches.batch_shapes(dataset.info, 6)
  assert {name: (x.shape, x.dtype) for name, x in foretold.items()} == {
    name: (x.shape, x.dtype) for name, x in batch.items()
  }


def test_processes_share_a_batch_in_order():
  split = _split(40)
  whole = batches.batch_at(split, 5, batch_size=12, seed=0)
  shares = [
    batches.batch_at(
      split, 5, batch_size=12, seed=0, process_index=i, process_count=3
    )
    for i in range(3)
  ]
  for key in ("image", "label"):
    np.testing.assert_array_equal(
      np.concatenate([share[key] for share in shares]), whole[key]
    )


@pytest.mark.parametrize("count", [8, 9, 11, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_each_image_once_in_one_shape(count, processes):
  split = _split(count)
  seen = []
  whole = list(batches.eval_batches(split, 4))
  for first in range(processes):
    own = range(first, len(whole), processes)
    for batch in batches.eval_batches(split, 4, numbers=own):
      assert batch["image"].shape == (4, 2, 2, 1)
      assert batch["mask"].dtype == np.float32
      assert batch["label"].dtype == np.int32
      filled = batch["mask"] == 0
      assert not batch["image"][filled].any()
      assert not batch["label"][filled].any()
      seen.extend(batch["label"][~filled])
  assert sorted(seen) == list(range(count))
  shown = np.concatenate([x["label"][x["mask"] > 0] for x in whole])
  assert shown.tolist() == list(range(count))


def test_an_empty_split_has_nothing_to_evaluate():
  assert list(batches.eval_batches(_split(0), 4)) == []


@pytest.mark.parametrize("batch_size", [0, 11, -1])
def test_batch_size_beyond_the_split_is_refused(batch_size):
  with pytest.raises(ValueError, match=f"is {batch_size}; expected 1 to 10"):
    batches.batch_at(_split(10), 0, batch_size=batch_size, seed=0)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"process_count": 3}, "expected a multiple of process_count, 3"),
    ({"process_count": 0}, "expected a multiple of process_count, 0"),
    ({"process_index": 2, "process_count": 2}, "process_index is 2"),
    ({"process_index": -1, "process_count": 2}, "process_index is -1"),
  ],
)
def test_a_batch_that_cannot_be_shared_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    batches.batch_at(_split(10), 0, batch_size=4, seed=0, **settings)


def test_a_negative_step_is_refused():
  with pytest.raises(ValueError, match="step is -1"):
    batches.batch_at(_split(10), -1, batch_size=4, seed=0)


def test_evaluation_of_no_images_at_a_time_is_refused():
  with pytest.raises(ValueError, match="batch_size is 0; expected 1 or more"):
    list(batches.eval_batches(_split(10), 0))
