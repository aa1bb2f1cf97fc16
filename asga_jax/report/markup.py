"""HTML of the reports: escaped text, tables, and a page that stands alone."""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Colours of the curves: --c0 and so on; see `STYLE`.
COLORS = 6

STYLE = """
:root {
  color-scheme: light dark;
  --back: #ffffff; --text: #1b1f24; --quiet: #57606a; --rule: #d0d7de;
  --panel: #f6f8fa; --warn: #fff3d6; --warn-edge: #b7791f; --limit: #c0392b;
  --c0: #1769aa; --c1: #c2570c; --c2: #1a7f4b;
  --c3: #8548b8; --c4: #b0324f; --c5: #4d6b7a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14181d; --text: #e6edf3; --quiet: #9aa5b1; --rule: #343c46;
    --panel: #1c2229; --warn: #33290f; --warn-edge: #d9a441; --limit: #ff7b72;
    --c0: #5eb1ef; --c1: #f2a65a; --c2: #5cc98c;
    --c3: #c29af0; --c4: #f2869e; --c5: #a8c0cc;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.2rem clamp(0.8rem, 3vw, 2rem) 3rem;
  max-width: 1240px; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.4rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; }
h1, h2, h3, p, li, dd, td, th { overflow-wrap: anywhere; }
h3 { font-size: 0.95rem; margin: 0 0 0.3rem; }
p { margin: 0.4rem 0; max-width: 75ch; }
.quiet { color: var(--quiet); font-size: 0.9rem; }
.figures {
  display: grid; gap: 0.7rem; margin: 1rem 0; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(150px, 1fr));
}
.figures div {
  background: var(--panel); border: 1px solid var(--rule);
  border-radius: 8px; padding: 0.6rem 0.8rem;
}
.figures dt { color: var(--quiet); font-size: 0.85rem; }
.figures dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
.figures dd + dd { font-size: 0.82rem; font-weight: 400; color: var(--quiet); }
.warnings { padding: 0; list-style: none; }
.warnings li {
  background: var(--warn); border-left: 4px solid var(--warn-edge);
  border-radius: 4px; padding: 0.6rem 0.9rem; margin: 0.5rem 0;
}
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.9rem; }
caption { text-align: left; color: var(--quiet); padding-bottom: 0.3rem; }
th, td {
  padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--rule);
  text-align: right; vertical-align: top; font-variant-numeric: tabular-nums;
  white-space: nowrap;
}
th:first-child, .text { text-align: left; }
tbody th { font-weight: 400; }
th div {
  width: max-content; max-width: min(22rem, 45vw); white-space: normal;
}
tfoot th, tfoot td { font-weight: 600; border-bottom: 0; }
td.share {
  min-width: 7rem; background-repeat: no-repeat;
  background-image: linear-gradient(var(--shade), var(--shade));
  --shade: color-mix(in srgb, var(--c0) 28%, transparent);
}
td.bits { background: color-mix(in srgb, var(--c0) var(--heat), transparent); }
td.text { min-width: 9rem; max-width: 40rem; white-space: normal; }
.charts {
  display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr));
}
.charts.few {
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
}
.bars { display: flex; flex-wrap: wrap; gap: 1.2rem 3rem; }
figure { margin: 0; min-width: 0; max-width: 100%; }
figure .fluid { display: block; width: 100%; max-width: 460px; height: auto; }
figcaption { font-size: 0.82rem; color: var(--quiet); }
.legend span { white-space: nowrap; margin-right: 0.9rem; }
.legend i {
  display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.3em;
  border-radius: 2px; border: 1.5px solid currentColor;
}
.legend i.full { background: currentColor; }
svg text {
  fill: var(--quiet); font: 11px system-ui, "DejaVu Sans", sans-serif;
}
svg .axis { stroke: var(--rule); stroke-width: 1; }
svg .limit { stroke: var(--limit); stroke-dasharray: 4 3; }
svg .curve { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
svg .faint { opacity: 0.3; stroke-width: 1; }
svg .fixed { fill: none; }
pre {
  background: var(--panel); border: 1px solid var(--rule); border-radius: 6px;
  padding: 0.6rem 0.8rem; overflow-x: auto; font-size: 0.85rem;
}
summary { cursor: pointer; }
"""


class Cell(NamedTuple):
  """A cell of a table: its text, and how full or dark it is drawn."""

  text: str
  # In [0, 1]: drawn as a bar behind the text.
  share: float | None = None
  # In [0, 1]: drawn as the depth of the colour.
  heat: float | None = None


def escape(text: object) -> str:
  """Make any text safe inside elements and quoted attributes."""
  # Half a surrogate pair, which JSON can hold, has no bytes in UTF-8.
  known = str(text).encode("utf-8", "replace").decode("utf-8")
  return html.escape(known, quote=True)


def paragraph(text: str, *, quiet: bool = False) -> str:
  """Make a paragraph of plain text."""
  kind = ' class="quiet"' if quiet else ""
  return f"<p{kind}>{escape(text)}</p>"


def section(title: str, *parts: str) -> str:
  """Put a heading over parts that are HTML; empty without any."""
  body = "\n".join(part for part in parts if part)
  return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" * bool(body)


def warning_list(sentences: Iterable[str]) -> str:
  """List warnings."""
  items = "".join(f"<li>{escape(text)}</li>" for text in sentences)
  return f'<ul class="warnings">{items}</ul>' if items else ""


def figures(rows: Iterable[tuple[str, str, str]]) -> str:
  """Lay out figures that stand out: their name, value, and a remark."""
  boxes = []
  for name, value, remark in rows:
    more = f"<dd>{escape(remark)}</dd>" if remark else ""
    boxes.append(
      f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd>{more}</div>"
    )
  return f'<dl class="figures">{"".join(boxes)}</dl>'


def _cell(content: str | Cell) -> str:
  if isinstance(content, str):
    return f'<td class="text">{escape(content)}</td>'
  if content.share is not None:
    filled = min(max(100 * content.share, 0.0), 100.0)
    style = f' class="share" style="background-size:{filled:.1f}% 100%"'
  elif content.heat is not None:
    depth = min(max(55 * content.heat, 0.0), 55.0)
    style = f' class="bits" style="--heat:{depth:.0f}%"'
  else:
    style = ""
  return f"<td{style}>{escape(content.text)}</td>"


def table(
  head: Sequence[str],
  rows: Sequence[Sequence[str | Cell]],
  *,
  foot: Sequence[str | Cell] | None = None,
) -> str:
  """Make a table that scrolls inside its own box where it is too wide.

  Args:
    head: the names of the columns.
    rows: their cells; the first of each is its name. Text is aligned left, a
      `Cell` right.
    foot: a last row of totals.
  """

  def line(cells: Sequence[str | Cell]) -> str:
    name, *rest = cells
    text = name if isinstance(name, str) else name.text
    return (
      f'<tr><th scope="row"><div>{escape(text)}</div></th>'
      f"{''.join(map(_cell, rest))}</tr>\n"
    )

  first = rows[0] if rows else head
  kinds = ['class="text" ' * isinstance(cell, str) for cell in first]
  names = "".join(
    f'<th {kind}scope="col">{escape(name)}</th>'
    for name, kind in zip(head, kinds, strict=True)
  )
  last = f"<tfoot>{line(foot)}</tfoot>" if foot else ""
  return (
    f'<div class="wide" tabindex="0"><table><thead><tr>{names}</tr></thead>\n'
    f"<tbody>{''.join(map(line, rows))}</tbody>{last}</table></div>"
  )


def code(lines: Iterable[str]) -> str:
  """Show commands."""
  return f'<pre tabindex="0">{escape(chr(10).join(lines))}</pre>'


def folded(title: str, body: str) -> str:
  """Fold a part of the page away; it opens without JavaScript."""
  return f"<details><summary>{escape(title)}</summary>{body}</details>"


def page(title: str, sections: Iterable[str]) -> str:
  """Make a whole page that needs nothing from elsewhere."""
  body = "\n".join(part for part in sections if part)
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""
