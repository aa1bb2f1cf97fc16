"""Images in their files: the same batches wherever they are made, and when."""

import jax
import numpy as np
import pytest
from flax import nnx
from made_images import damage, leave_folders, numbers

from asga_jax import data, evaluate
from asga_jax.data import batches, decoding

SETTINGS = {"batch_size": 8, "seed": 3, "crops": True}
STEPS = range(7)  # of two epochs and more: three steps go through 24 images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  return leave_folders(tmp_path_factory.mktemp("images"))


def _opened(root, **settings):
  settings = {"size": 8, "preset": "torchvision", **settings}
  return data.stream("train,val", data_dir=root, **settings)


def _train(root, **settings):
  opened = _opened(root, **settings)
  return data.split_proxy(opened, heldout_fraction=0.0, seed=0).train


@pytest.fixture(scope="module")
def whole(folders):
  return list(batches.batches_at(_train(folders), STEPS, **SETTINGS))


def _same(found, wanted):
  assert len(found) == len(wanted)
  for each, other in zip(found, wanted, strict=True):
    assert set(each) == set(other) == {"image", "label"}
    for key in each:
      np.testing.assert_array_equal(each[key], other[key])


def test_an_epoch_shows_each_image_once_with_its_label(whole):
  for epoch in (whole[:3], whole[3:6]):
    seen = np.concatenate([numbers(batch["image"]) for batch in epoch])
    labels = np.concatenate([batch["label"] for batch in epoch])
    assert sorted(seen) == list(range(24))
    np.testing.assert_array_equal(labels, seen // 8)
  assert whole[0]["image"].dtype == np.uint8
  assert whole[0]["image"].shape == (8, 8, 8, 3)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_processes_share_the_batches_of_one(folders, whole, count):
  shares = [
    list(
      batches.batches_at(
        _train(folders),
        STEPS,
        **SETTINGS,
        process_index=index,
        process_count=count,
      )
    )
    for index in range(count)
  ]
  joined = [
    {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    for parts in zip(*shares, strict=True)
  ]
  _same(joined, whole)


def test_a_run_goes_on_at_any_step(folders, whole):
  rest = batches.batches_at(_train(folders), STEPS[4:], **SETTINGS)
  _same(list(rest), whole[4:])
  _same([batches.batch_at(_train(folders), 5, **SETTINGS)], whole[5:6])


@pytest.mark.slow
def test_worker_processes_make_the_same_batches_and_hand_on_errors(
  folders, whole, tmp_path
):
  for workers in (1, 3):
    train = _train(folders, workers=workers)
    _same(list(batches.batches_at(train, STEPS, **SETTINGS)), whole)
  root = leave_folders(tmp_path)
  for name in ("cat/3.jpg", "elk/0.jpg"):
    damage(root / "train" / name)
  train = _train(root, workers=2, bad_images=2)
  alone = _train(root, bad_images=2)
  _same(
    list(batches.batches_at(train, STEPS, **SETTINGS)),
    list(batches.batches_at(alone, STEPS, **SETTINGS)),
  )
  assert train.images.bad == alone.images.bad
  assert len(train.images.bad) == 2
  train = _train(root, workers=2, bad_images=1)
  with pytest.raises(data.DataError, match=r"2 damaged.*cat/3\.jpg.*elk/0"):
    list(batches.batches_at(train, STEPS, **SETTINGS))


def test_the_part_that_is_cropped_changes_with_the_epoch_alone(tmp_path):
  root = leave_folders(tmp_path, size=(64, 48))
  train = _train(root)
  once, again = (
    train.take(np.array([5]), draw=(3, epoch))["image"] for epoch in (0, 1)
  )
  np.testing.assert_array_equal(
    once, train.take(np.array([2, 5]), draw=(3, 0))["image"][1:]
  )
  assert (once != again).any()


def test_random_parts_are_of_the_areas_and_ratios_asked_for():
  rng = np.random.default_rng(0)
  boxes = np.array([decoding.random_box(500, 375, rng) for _ in range(4000)])
  left, top, right, bottom = boxes.T
  assert (left >= 0).all()
  assert (top >= 0).all()
  assert (right <= 500).all()
  assert (bottom <= 375).all()
  areas = (right - left) * (bottom - top) / (500 * 375)
  ratios = (right - left) / (bottom - top)
  # To half a pixel of rounding.
  assert 0.078 < areas.min() < 0.1
  assert areas.max() > 0.9
  assert 0.74 < ratios.min() < 0.78
  assert 1.29 < ratios.max() < 1.35
  # Small parts always fit, so that of these all areas are as likely.
  small = areas[areas < 0.5]
  assert abs(np.mean(small < 0.29) - 0.5) < 0.03
  # No part of such a shape exists; what stands for it has all of the height.
  assert decoding.random_box(1000, 3, rng)[3] == 3


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [6, 12, 18, 48])
def test_evaluation_counts_every_image_once(folders, count, batch_size):
  dataset = _opened(folders, workers=2)
  seen = []
  for index in range(count):
    for batch in batches.eval_batches(
      data.Split(dataset.test_images, dataset.test_labels),
      batch_size,
      numbers=range(index, -(-18 // batch_size), count),
    ):
      assert batch["image"].shape == (batch_size, 8, 8, 3)
      counted = batch["mask"] > 0
      found = numbers(batch["image"])[counted]
      np.testing.assert_array_equal(batch["label"][counted], found // 6)
      assert not batch["image"][~counted].any()
      seen.extend(found)
  assert sorted(seen) == list(range(18))


@pytest.fixture
def damaged(tmp_path):
  """Two files of the training part that break off, one of the other."""
  root = leave_folders(tmp_path)
  for name in ("train/cat/7.jpg", "train/dog/2.jpg", "val/elk/5.jpg"):
    damage(root / name)
  return root


def test_a_damaged_image_is_named(damaged):
  with pytest.raises(
    data.DataError,
    match=r"1 damaged image, and bad_images is 0: .*\.jpg cannot be decoded",
  ):
    list(batches.batches_at(_train(damaged), STEPS, **SETTINGS))
  # Of an array there is none to skip.
  opened = _opened(damaged, bad_images=9)
  assert len(opened.train_images[[0, 5]]) == 2
  with pytest.raises(data.DataError, match=r"cat/7\.jpg cannot be decoded"):
    opened.train_images[5:9]
  (damaged / "train" / "cat" / "0.jpg").unlink()
  with pytest.raises(data.DataError, match=r"No such file.*cat/0\.jpg"):
    opened.train_images[0]


def test_damaged_images_are_counted_and_the_next_stand_for_them(damaged):
  train = _train(damaged, bad_images=2)
  made = list(batches.batches_at(train, STEPS, **SETTINGS))
  for epoch in (made[:3], made[3:6]):
    seen = np.concatenate([numbers(batch["image"]) for batch in epoch])
    labels = np.concatenate([batch["label"] for batch in epoch])
    # 7 and 10 break off; 8, of another class, and 11 come twice.
    wanted = [*range(7), 8, 8, 9, 11, 11, *range(12, 24)]
    assert sorted(seen) == wanted
    np.testing.assert_array_equal(labels, seen // 8)
  # Once each, though two epochs met them.
  assert len(train.images.bad) == 2
  halves = [
    next(
      iter(
        batches.batches_at(
          train,
          range(1, 2),
          **SETTINGS,
          process_index=index,
          process_count=2,
        )
      )
    )
    for index in range(2)
  ]
  joined = {k: np.concatenate([half[k] for half in halves]) for k in halves[0]}
  _same([joined], made[1:2])
  train = _train(damaged, bad_images=1)
  with pytest.raises(data.DataError, match=r"2 damaged.*cat/7.*dog/2"):
    list(batches.batches_at(train, STEPS, **SETTINGS))


def test_evaluation_leaves_a_damaged_image_out(damaged):
  opened = _opened(damaged, bad_images=1)
  test = data.Split(opened.test_images, opened.test_labels)
  seen = list(batches.eval_batches(test, 4))
  assert sum(batch["mask"].sum() for batch in seen) == 17
  assert len(opened.test_images.bad) == 1
  shown = np.concatenate([b["image"][b["mask"] > 0] for b in seen])
  assert sorted(numbers(shown)) == list(range(17))
  with pytest.raises(data.DataError, match=r"elk/5\.jpg cannot be decoded"):
    list(batches.eval_batches(_test(damaged), 4))


def test_a_damaged_image_counts_for_no_accuracy(damaged):
  """All that can be read are right, so that a share below one is a fault."""
  opened = _opened(damaged, bad_images=1)
  test = data.Split(opened.test_images, opened.test_labels)

  class Knowing(nnx.Module):
    def __call__(self, x):
      return jax.nn.one_hot(x, 3)

  def prepare(key, batch):
    del key
    return {"image": batch["label"]}

  found = evaluate.evaluate(Knowing(), test, prepare, batch_size=4)
  assert found.images == len(found.correct) == 17
  assert found.top1 == 1
  assert found.confusion.sum() == 17
  assert (
    list(batches.eval_batches(test, 4, numbers=range(1, 5, 2)))[1][
      "label"
    ].tolist()
    == opened.test_labels[12:16].tolist()
  )


def _test(root):
  opened = _opened(root)
  return data.Split(opened.test_images, opened.test_labels)


def test_held_out_images_are_parted_without_being_read(folders):
  opened = _opened(folders)
  splits = data.split_proxy(opened, heldout_fraction=0.25, seed=0)
  parts = splits.train, splits.heldout
  assert [np.bincount(part.labels).tolist() for part in parts] == [
    [6, 6, 6],
    [2, 2, 2],
  ]
  shown = [numbers(part.images[:]) for part in parts]
  assert sorted(np.concatenate(shown)) == list(range(24))
  for part, seen in zip(parts, shown, strict=True):
    np.testing.assert_array_equal(part.labels, seen // 8)
    np.testing.assert_array_equal(
      part.take(np.arange(len(part)))["label"], part.labels
    )
