"""Matplotlib figures as SVG that stands in a page and has its colours."""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import markupsafe
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import style as mpl_style

# Curves have so many colours.
COLORS = 6
# A colour of the page, light or dark -> what stands for it while drawing.
_INKS = {
  **{f"c{slot}": f"#0000c{slot}" for slot in range(COLORS)},
  "back": "#0000d0",
  "text": "#0000d1",
  "quiet": "#0000d2",
  "rule": "#0000d3",
  "limit": "#0000d4",
}
_STYLE = {
  "axes.autolimit_mode": "round_numbers",
  "font.size": 11,
  "lines.scale_dashes": False,
  "path.snap": False,
  "svg.fonttype": "none",
  # Without it ids are drawn by chance.
  "svg.hashsalt": "report",
  "text.color": _INKS["quiet"],
  "text.parse_math": False,
  "xtick.labelcolor": _INKS["quiet"],
  "ytick.labelcolor": _INKS["quiet"],
}


def ink(color: str | int) -> str:
  """Give what to draw with: for a colour of the page, or a curve's number."""
  if isinstance(color, int):
    color = f"c{color % COLORS}"
  return _INKS[color]


def plain(text: str) -> str:
  """Make any text fit for a figure: one line that XML can hold."""
  return "".join(x if x.isprintable() else "?" for x in text)


@contextlib.contextmanager
def canvas(width: float, height: float) -> Iterator[mpl_figure.Figure]:
  """Make a figure that is `width` by `height` units; 11 are a line of text.

  Figures are drawn and turned into SVG inside; the user's settings of
  matplotlib neither show in them nor change.
  """
  with mpl_style.context(["default", _STYLE]):
    figure = mpl_figure.Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    yield figure


def axes_within(
  figure: mpl_figure.Figure, margins: tuple[float, float, float, float]
) -> mpl_axes.Axes:
  """Make axes inside margins: left, bottom, right, top, in units."""
  width, height = 72 * figure.get_size_inches()
  left, bottom, right, top = margins
  axes = figure.add_axes(
    (
      left / width,
      bottom / height,
      (width - left - right) / width,
      (height - bottom - top) / height,
    )
  )
  axes.patch.set_visible(False)
  axes.spines[:].set_visible(False)
  axes.tick_params(left=False, bottom=False, pad=5)
  return axes


def stand(axes: mpl_axes.Axes, names: Sequence[str], **ticks: Any) -> None:
  """Write names below an axis, upright, each up to its place: 0, 1, ..."""
  axes.set_xticks(
    range(len(names)),
    names,
    rotation=90,
    rotation_mode="anchor",
    ha="right",
    va="center",
  )
  axes.tick_params(axis="x", **ticks)


def inline(
  figure: mpl_figure.Figure,
  label: str,
  *,
  hints: Mapping[str, str] | None = None,
  fluid: bool = True,
) -> markupsafe.Markup:
  """Turn a figure into an <svg> without ids, links or sizes of its own.

  Args:
    figure: from `canvas`, inside of it.
    label: what the picture is of, for those who do not see it.
    hints: an artist's group id -> what pointing at it says.
    fluid: whether it is as wide as there is room, or as it was drawn.

  Returns:
    The element. Equal figures give equal text.
  """
  written = io.StringIO()
  figure.savefig(written, format="svg", metadata={"Date": None})
  # Written by matplotlib alone: text in it is escaped.
  root = ElementTree.fromstring(written.getvalue())
  for element in root.iter():
    element.tag = element.tag.rpartition("}")[2]
  shapes = {e.get("id"): e for e in root.iter("path") if e.get("id")}
  _draw(root, shapes, hints or {})
  box = root.attrib["viewBox"]
  root.text = None
  root.attrib.clear()
  root.attrib |= {"viewBox": box, "role": "img", "aria-label": plain(label)}
  if fluid:
    root.set("class", "fluid")
  else:
    root.set("style", f"width:{box.split()[2]}px")
  return markupsafe.Markup(ElementTree.tostring(root, encoding="unicode"))


def _draw(
  parent: ElementTree.Element,
  shapes: Mapping[str | None, ElementTree.Element],
  hints: Mapping[str, str],
) -> None:
  """Put shapes where they are used, and leave out what a page does without."""
  for child in list(parent):
    if child.tag in ("metadata", "defs"):
      parent.remove(child)
      continue
    _draw(child, shapes, hints)
    child.tail = None
    attributes = child.attrib
    hint = hints.get(attributes.pop("id", ""))
    attributes.pop("clip-path", None)
    if child.tag == "use":
      link = next(value for name, value in attributes.items() if "href" in name)
      x, y = attributes.get("x", "0"), attributes.get("y", "0")
      style = attributes.get("style", "")
      attributes.clear()
      shape = shapes[link[1:]]
      both = "; ".join(filter(None, (shape.get("style"), style)))
      attributes |= {
        "d": shape.attrib["d"],
        "transform": f"translate({x} {y})",
        "style": both,
      }
      child.tag = "path"
    if child.tag == "path":
      numbers = " ".join(attributes["d"].split())
      # A tenth of a unit is less than can be seen.
      attributes["d"] = re.sub(r"(\.\d)\d+", r"\1", numbers)
    if child.tag == "text":
      # The page has a font; nothing is turned by -0 degrees.
      attributes["style"] = re.sub(
        r"font-family:[^;]*;?", "", attributes["style"]
      )
      if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    for color, drawn in _INKS.items():
      if drawn in attributes.get("style", ""):
        attributes["style"] = attributes["style"].replace(
          drawn, f"var(--{color})"
        )
    if child.tag == "g":
      child.text = None
    if hint is not None:
      title = ElementTree.Element("title")
      title.text = plain(hint)
      child.insert(0, title)
