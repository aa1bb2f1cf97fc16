"""Figures of the pages: what stands where, and that any page can hold them."""

import math
import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from asga_jax.report import bars, confusion, figures, svg


def parsed(chart):
  """The <svg> of a chart; ElementTree refuses what is not well-formed."""
  found = ElementTree.fromstring(chart.svg)
  assert found.tag == "svg"
  width, height = map(float, found.get("viewBox").split()[2:])
  assert width > 0 < height
  return found


def texts(chart):
  return ["".join(text.itertext()) for text in parsed(chart).iter("text")]


def runs_of(chart, color):
  """The lines of a colour: runs of (x, y), a new one at each M."""
  found = []
  for path in parsed(chart).iter("path"):
    if f"stroke: var(--{color})" in path.get("style"):
      for part in path.get("d").split("M")[1:]:
        pairs = re.findall(r"([\d.-]+) ([\d.-]+)", part)
        found.append([(float(x), float(y)) for x, y in pairs])
  return found


def rectangles(chart, color):
  """Left, top, right, bottom and the fill of each shape of a colour."""
  found = []
  for path in parsed(chart).iter("path"):
    style = path.get("style")
    if f"var(--{color})" in style and "z" in path.get("d"):
      x, y = np.array(
        re.findall(r"([\d.-]+) ([\d.-]+)", path.get("d")), float
      ).T
      hollow = "fill: none" in style
      found.append((x.min(), y.min(), x.max(), y.max(), hollow))
  return found


def upward(chart):
  """The numbers of the upward axis, and where they stand."""
  units = {"G": 1e9, "M": 1e6, "k": 1e3}
  found = {}
  for text in parsed(chart).iter("text"):
    if "text-anchor: end" in text.get("style"):
      shown = "".join(text.itertext())
      value = float(shown.rstrip("GMk")) * units.get(shown[-1], 1)
      found[value] = float(text.get("y"))
  return found


def line(y, **settings):
  one = figures.Series("a", np.arange(1, len(y) + 1), y)
  return figures.line_chart("a title", [one], **settings)


def test_points_stand_where_their_values_are():
  chart = line([0.0, 0.5, 1.0])
  ((first, _, last),) = runs_of(chart, "c0")
  assert first[0] < last[0]
  # Upwards is towards smaller y; 0 and 1 are written beside the axis, with
  # their baselines a third of a line below.
  places = upward(chart)
  assert places[0] - first[1] == pytest.approx(4, abs=1)
  assert places[1] - last[1] == pytest.approx(4, abs=1)
  assert "step" in texts(chart)
  assert chart.title == parsed(chart).get("aria-label") == "a title"


@pytest.mark.parametrize(
  ("low", "high"),
  [
    (0, 1),
    (0.3, 9.7),
    (-0.13, 0.98),
    (0, 0),
    (5, 5),
    (0.01, math.nextafter(0.01, 1)),
    (-3, -3),
    (1e-30, 2e-30),
    (1e30, 1e31),
    (34.7e9, 1e11),
  ],
)
def test_the_axis_has_round_numbers_around_any_range(low, high):
  chart = line([low, high])
  values = upward(chart)
  assert 2 <= len(values) <= 8
  # By less than can be seen, a value may lie outside.
  margin = 1e-6 * (max(values) - min(values))
  assert min(values) <= low + margin
  assert max(values) >= high - margin
  ((first, last),) = runs_of(chart, "c0")
  assert 0 <= min(first[1], last[1]) <= max(first[1], last[1]) <= 190


def test_what_is_not_finite_is_a_gap():
  chart = line([1.0, 2.0, math.nan, 3.0, 4.0, math.inf, 5.0, 6.0])
  assert list(map(len, runs_of(chart, "c0"))) == [2, 2, 2]
  assert "nan" not in chart.svg
  assert "inf" not in chart.svg


def test_nothing_to_draw_is_no_chart():
  assert figures.line_chart("t", []) is None
  assert line([math.nan]) is None


def test_a_single_step_is_a_point_that_says_its_value():
  (title,) = parsed(line([2.5])).iter("title")
  assert title.text == "a: 1, 2.5"


def test_a_limit_outside_the_curve_is_still_on_the_chart():
  chart = line([3.0, 4.0], limit=0)
  ((limit, _),) = runs_of(chart, "limit")
  ((first, last),) = runs_of(chart, "c0")
  assert last[1] < first[1] < limit[1] < 190


def test_curves_beyond_the_colours_are_dashed():
  chart = figures.line_chart(
    "t", [figures.Series(f"s{i}", [1, 2], [i, i], i) for i in range(7)]
  )
  paths = [
    path.get("style")
    for path in parsed(chart).iter("path")
    if "var(--c" in path.get("style")
  ]
  assert len(set(paths)) == 7
  assert ["dasharray" in style for style in paths] == [False] * 6 + [True]
  assert [key.label for key in chart.legend] == [f"s{i}" for i in range(7)]


def test_pale_curves_are_no_entry_of_the_legend():
  pale = figures.Series("a", [1, 2], [0, 1], faint=True)
  assert not figures.line_chart("t", [pale, pale._replace(faint=False)]).legend


def bar(value, hollow=False):
  return bars.Bar(value, f"{value}x", f"hint {value}", hollow)


def test_bars_are_as_high_as_their_values_on_one_scale():
  chart = bars.mirrored_bars(
    "t", ["a", "b"], [bar(2), bar(4, True)], [bar(8), bar(1)], ("up", "down")
  )
  up, down = (rectangles(chart, color) for color in ("c0", "c1"))
  heights = [bottom - top for _, top, _, bottom, _ in (*up, *down)]
  np.testing.assert_allclose(
    np.array(heights) / heights[2], [0.25, 0.5, 1, 0.125], atol=0.01
  )
  # Upper bars end where lower ones begin.
  ends = [*(x[3] for x in up), *(x[1] for x in down)]
  np.testing.assert_allclose(ends, ends[0], atol=0.11)
  assert [x[4] for x in (*up, *down)] == [False, True, False, False]
  assert texts(chart) == ["a", "b", "2x", "4x", "8x", "1x"]
  hints = [title.text for title in parsed(chart).iter("title")]
  assert hints == ["hint 2", "hint 4", "hint 8", "hint 1"]
  assert [key.label for key in chart.legend] == ["up", "down"]


def test_long_names_keep_their_end():
  name = "blocks/" * 20 + "conv"
  chart = bars.mirrored_bars("t", [name], [bar(1)], [bar(1)], ("u", "d"))
  shown = texts(chart)[0]
  assert shown.endswith("blocks/conv")
  assert len(shown) <= 22


def test_bars_of_nothing_have_no_height():
  chart = bars.mirrored_bars("t", ["a"], [bar(0)], [bar(0)], ("u", "d"))
  assert texts(chart) == ["a", "0x", "0x"]
  for _, top, _, bottom, _ in rectangles(chart, "c0"):
    assert top == bottom


def test_a_matrix_shows_the_shares_of_each_class():
  shares = np.array([[0.75, 0.25, 0], [0, 1, 0], [0.005, 0.495, 0.5]])
  chart = confusion.matrix("t", shares, ["cat", "dog", "a" * 40])
  cells = [
    float(path.get("style").partition("opacity: ")[2].partition(";")[0] or 1)
    for path in parsed(chart).iter("path")
    if "fill: var(--c0)" in path.get("style")
  ]
  # What is fainter than one in a hundred is left out.
  np.testing.assert_allclose(cells, [0.75, 0.25, 1, 0.495, 0.5])
  shown = texts(chart)
  assert shown[-5:] == ["75", "25", "100", "50", "50"]
  assert shown.count("cat") == shown.count("a" * 15 + "…") == 2


def test_many_classes_are_drawn_without_names():
  chart = confusion.matrix("t", np.eye(100), [f"n{i}" for i in range(100)])
  assert texts(chart) == []
  assert len(list(parsed(chart).iter("path"))) > 100


@pytest.mark.parametrize(
  "name", ["<b>&amp;\"'", "$a_$x", "\ud800", "\x00\x1b\n", "#0000c0", r"\frac"]
)
def test_any_name_is_text(name):
  chart = bars.mirrored_bars(
    name, [name], [bars.Bar(1, name, name)], [bar(1)], ("u", "d")
  )
  expected = svg.plain(name)
  assert texts(chart) == [expected, expected, "1x"]
  assert parsed(chart).get("aria-label") == expected
  assert next(parsed(chart).iter("title")).text == expected


def test_any_page_can_hold_several():
  series = [
    figures.Series("a", [1, 2], [1, 2]),
    figures.Series("b", [1, 2], [1, 2], 1, "points"),
  ]
  chart = figures.line_chart("t", series, limit=0)
  for element in parsed(chart).iter():
    names = {name.rpartition("}")[2] for name in element.attrib}
    assert not {"id", "href", "clip-path"} & names
    assert element.tag in {"svg", "g", "path", "text", "title"}
    # Its colours are the page's.
    assert not re.search(r"#[0-9a-f]{6}", element.get("style", ""))
  assert figures.line_chart("t", series, limit=0) == chart


def test_settings_of_the_user_neither_show_nor_change():
  plain = line([1.0, 2.0])
  with mpl.rc_context({"lines.linewidth": 9, "font.size": 30}):
    before = dict(mpl.rcParams)
    assert line([1.0, 2.0]) == plain
    assert dict(mpl.rcParams) == before
