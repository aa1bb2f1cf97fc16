"""Ranks of proxies, and curves of searches, on cases known by hand."""

import os

import numpy as np
import pytest

from asga_jax.evidence import curves, images, networks, transfer


def _scores(first):
  # Three candidates a tensor; what few bits lose is what ranks tensors.
  return {f"t{i}": [-2.0 * x, -x, 0.0] for i, x in enumerate(first)}


def test_the_same_ranks_agree_whatever_their_scale():
  lost = [0.1, 3.0, 0.02, 1.0]
  assert transfer.agreement(
    _scores(lost), _scores(np.exp(lost))
  ) == pytest.approx(1)


def test_turned_ranks_disagree_and_single_candidates_count_nothing():
  lost = np.array([0.1, 3.0, 0.02, 1.0])
  first, second = _scores(lost), _scores(-lost)
  first["fixed"], second["fixed"] = [0.0], [5.0]
  assert transfer.agreement(first, second) == pytest.approx(-1)


def test_one_swap_of_four_is_spearmans():
  # 1 - 6 sum d^2 / (n (n^2 - 1)) with two ranks that differ by one.
  found = transfer.agreement(_scores([1, 2, 3, 4]), _scores([1, 2, 4, 3]))
  assert found == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_a_level_of_the_whole_tensor_does_not_count():
  first, second = _scores([1, 2, 3, 4]), _scores([1, 2, 3, 4])
  second = {
    k: [x + 7.0 * i for x in v] for i, (k, v) in enumerate(second.items())
  }
  assert transfer.agreement(first, second) == pytest.approx(1)


def test_curves_are_averaged_over_their_last_quarter(tmp_path):
  steps = np.arange(8.0)
  found = {
    "sam": {"gap": np.stack([steps, steps + 2]), "loss": np.ones((2, 8))}
  }
  (row,) = curves.summarise(found)
  # Means of 6 and 7, and of 8 and 9.
  assert row["gap"] == pytest.approx(7.5)
  assert row["gap_spread"] == pytest.approx(np.std([6.5, 8.5], ddof=1))
  assert row["seeds"] == 2
  curves.draw(found, tmp_path / "curves.png", title="searches")
  assert (tmp_path / "curves.png").stat().st_size > 5_000


@pytest.mark.slow
@pytest.mark.skipif("ASGA_DATA_DIR" not in os.environ, reason="no data")
def test_classes_of_tiny_imagenet_have_the_labels_of_imagenet():
  root = networks.find_data("")
  network = networks.NETWORKS["ResNet-18"]._replace(size=64)
  found = images.read_target("tiny_imagenet100", network, root)
  assert found.images.shape[1:] == (64, 64, 3)
  counted = np.bincount(found.labels, minlength=1000)
  # Fifty images a class, of the classes that the lists of images know.
  assert set(counted) == {0, 50}
  assert counted.sum() == len(found.images)
  # n01443537, the goldfish, is the second class of ImageNet.
  assert counted[1] == 50
