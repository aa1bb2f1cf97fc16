import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from asga_jax.report import charts


def parsed(figure):
  """The <svg> of a figure; ElementTree refuses what is not well-formed."""
  svg = ElementTree.fromstring(figure).find(".//svg")
  assert svg is not None
  return svg


def path_points(figure):
  """The points of each path: runs of (x, y), a new one at each M."""
  found = []
  for path in parsed(figure).iter("path"):
    pieces = re.findall(r"([ML])([\d.-]+) ([\d.-]+)", path.get("d"))
    runs = []
    for letter, x, y in pieces:
      if letter == "M":
        runs.append([])
      runs[-1].append((float(x), float(y)))
    found.append(runs)
  return found


@pytest.mark.parametrize(
  ("low", "high", "expected"),
  [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (0.3, 9.7, [0, 2, 4, 6, 8, 10]),
    (-0.13, 0.98, [-0.5, 0, 0.5, 1]),
    (1, 200, [0, 50, 100, 150, 200]),
  ],
)
def test_ticks_are_round_numbers(low, high, expected):
  assert charts.ticks(low, high) == expected


@pytest.mark.parametrize(
  ("low", "high"),
  [
    (0, 0),
    (5, 5),
    (0.01, math.nextafter(0.01, 1)),
    (-3, -3),
    (1e-30, 2e-30),
    (1e30, 1e31),
    (-1e-9, 1e9),
  ],
)
def test_ticks_span_any_range(low, high):
  ticks = charts.ticks(low, high)
  assert len(ticks) >= 2
  # By less than can be seen, a value may lie outside.
  span = ticks[-1] - ticks[0]
  assert ticks[0] <= low + 1e-6 * span
  assert ticks[-1] >= high - 1e-6 * span
  assert ticks == sorted(set(ticks))
  assert len(ticks) <= 8


@pytest.mark.parametrize(
  ("value", "text"),
  [(0, "0"), (0.05, "0.05"), (999, "999"), (34_710_000_000, "34.71G")],
)
def test_numbers_of_an_axis(value, text):
  assert charts.number(value) == text


def test_points_stand_where_their_values_are():
  figure = charts.line_chart(
    "t", [charts.Series("a", [1, 2, 3], [0.0, 0.5, 1.0])]
  )
  ((points,),) = path_points(figure)
  x, y = np.array(points).T
  np.testing.assert_allclose(np.diff(x, 2), 0, atol=0.11)
  np.testing.assert_allclose(np.diff(y, 2), 0, atol=0.11)
  # Upwards is towards smaller y; 0 and 1 are ticks, with their labels beside.
  assert y[0] > y[-1]
  texts = parsed(figure).findall("text[@text-anchor='end']")
  labels = {text.text: float(text.get("y")) for text in texts}
  np.testing.assert_allclose(labels["0"] - 4, y[0], atol=0.11)
  np.testing.assert_allclose(labels["1"] - 4, y[-1], atol=0.11)


def test_what_is_not_finite_is_a_gap():
  y = [1.0, 2.0, math.nan, 3.0, math.inf, 4.0]
  figure = charts.line_chart("t", [charts.Series("a", range(6), y)])
  ((first, second, third),) = path_points(figure)
  assert [len(first), len(second), len(third)] == [2, 1, 1]
  assert "nan" not in figure
  assert "inf" not in figure


def test_nothing_to_draw_is_no_chart():
  assert charts.line_chart("t", []) == ""
  assert charts.line_chart("t", [charts.Series("a", [1], [math.nan])]) == ""


def test_a_single_step_is_a_point():
  figure = charts.line_chart("t", [charts.Series("a", [1], [2.0])])
  assert len(list(parsed(figure).iter("circle"))) == 1


def test_a_limit_outside_the_curve_is_still_on_the_chart():
  figure = charts.line_chart(
    "t", [charts.Series("a", [1, 2], [3.0, 4.0])], limit=0
  )
  (line,) = parsed(figure).findall("line[@class='limit']")
  ((points,),) = path_points(figure)
  assert float(line.get("y1")) > max(y for _, y in points)


def test_curves_beyond_the_colours_are_dashed():
  series = [charts.Series(f"s{i}", [1, 2], [i, i], i) for i in range(7)]
  figure = charts.line_chart("t", series)
  styles = [path.get("style") for path in parsed(figure).iter("path")]
  assert len(set(styles)) == 7
  assert "dasharray" in styles[6]
  assert figure.count("<i ") == 7


def bar(value, hollow=False):
  return charts.Bar(value, f"{value}", f"hint {value}", hollow)


def test_bars_are_as_high_as_their_values_on_one_scale():
  figure = charts.mirrored_bars(
    "t", ["a", "b"], [bar(2), bar(4, True)], [bar(8), bar(0)], ("up", "down")
  )
  bars = list(parsed(figure).iter("rect"))
  heights = [float(rect.get("height")) for rect in bars]
  np.testing.assert_allclose(np.array(heights) / heights[2], [0.25, 0.5, 1, 0])
  # Upper bars end where lower ones begin.
  ends = [float(r.get("y")) + h for r, h in zip(bars, heights, strict=True)]
  middle = float(bars[2].get("y"))
  np.testing.assert_allclose(ends[:2], middle, atol=0.11)
  assert [rect.get("class") for rect in bars] == [None, "fixed", None, None]


def test_long_names_keep_their_end():
  name = "blocks/" * 20 + "conv"
  figure = charts.mirrored_bars("t", [name], [bar(1)], [bar(1)], ("u", "d"))
  shown = [t.text for t in parsed(figure).iter("text")][-1]
  assert shown.endswith("blocks/conv")
  assert len(shown) <= 22


def test_bars_of_nothing():
  charts.mirrored_bars("t", ["a"], [bar(0)], [bar(0)], ("u", "d"))
