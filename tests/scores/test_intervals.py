"""Intervals of shares, against drawn samples and by hand."""

import numpy as np
import pytest

from asga_jax.scores import intervals


def test_a_difference_by_hand():
  first = np.array([True] * 90 + [False] * 10)
  second = first.copy()
  second[:6] = False
  second[95:97] = True
  found = intervals.difference(first, second)
  assert found.value == pytest.approx(0.04)
  middle = 4 / 102
  reach = 1.959964 * np.sqrt(9 - 16 / 102) / 102
  assert (found.low, found.high) == pytest.approx(
    (middle - reach, middle + reach)
  )
  assert found.half_width == pytest.approx(reach)
  assert found.images_for(reach / 2) == pytest.approx(400, abs=1)
  assert found.percent().startswith("4.00 points (95 % interval -1.7")


def test_no_difference_at_all_is_no_certainty():
  same = np.ones(98, bool)
  found = intervals.difference(same, same)
  assert found.value == 0
  assert found.half_width == pytest.approx(0.0196, rel=1e-3)
  assert intervals.share(~same).high == pytest.approx(0.0377, rel=1e-2)


@pytest.mark.parametrize("rates", [(0.05, 0.03), (0.02, 0.02), (0.2, 0.05)])
def test_the_truth_lies_within_in_95_of_100(rates):
  rng = np.random.default_rng(0)
  inside = []
  for _ in range(800):
    draw = rng.random(400)
    gained = draw < rates[0]
    lost = (draw > 1 - rates[1]) & ~gained
    found = intervals.difference(gained | ~lost, ~gained)
    inside.append(found.low <= rates[0] - rates[1] <= found.high)
    one = intervals.share(gained)
    inside.append(one.low <= rates[0] <= one.high)
  assert 0.93 < np.mean(inside) < 0.98
