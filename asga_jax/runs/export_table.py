"""The report on exported files as a table, as JSON and as a picture."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import tabulate

from asga_jax import files
from asga_jax.report import export_plot
from asga_jax.runs import measure as export_report


def write(report: dict[str, Any], path: str | os.PathLike[str]) -> pathlib.Path:
  """Write a report as JSON and, beside it, its picture.

  Args:
    report: from `export_report.measure`.
    path: of the JSON file.

  Returns:
    Where the picture is.
  """
  path = pathlib.Path(path)
  files.write_text_atomic(path, json.dumps(report, indent=2) + "\n")
  picture = path.with_suffix(".png")
  where = f"{report['data']}, {report['images']} {report['split']} images"
  export_plot.plot_export(
    report["rows"],
    picture,
    baseline=export_report.BASELINE,
    title=f"{report['model']} on {where}",
  )
  return picture


def format_table(report: dict[str, Any]) -> str:
  """Lay out a report for the terminal: a line a file, latencies as ratios."""
  of_float = next(
    (x for x in report["rows"] if x["name"] == export_report.BASELINE), None
  )
  base = of_float["latency_ms"] if of_float else {}
  whole = of_float["file_bytes"] if of_float else None
  lines = [
    (
      "",
      "runtime",
      "file KB",
      "smaller",
      "constants",
      "promised",
      "top-1 %",
      "as JAX %",
      *(f"batch {size}" for size in export_report.BATCHES),
    )
  ]
  for row in report["rows"]:
    file, *sizes = (row[f"{x}_bytes"] for x in ("file", "stored", "promised"))
    shares = (row["top1"], row["same"])
    ratios = (
      _ratio(row["latency_ms"], base, str(size))
      for size in export_report.BATCHES
    )
    lines.append(
      (
        row["name"],
        row["runtime"],
        _kilobytes(file),
        f"{whole / file:.2f}x" if whole and file else "-",
        *map(_kilobytes, sizes),
        *("-" if x is None else f"{100 * x:.2f}" for x in shares),
        *ratios,
      )
    )
  table = tabulate.tabulate(
    lines,
    tablefmt="plain",
    disable_numparse=True,
    colalign=("left", "left", *("right",) * (len(lines[0]) - 2)),
  )
  where = f"{report['data']}, {report['split']}, {report['images']} images"
  laid = [f"{report['model']} on {where}", table]
  if report["how"]:
    laid.append(report["how"])
  if base:
    each = ", ".join(f"{ms:.3g} ms at batch {n}" for n, ms in base.items())
    laid.append(f"1.00x is the time of the float ONNX: {each}")
  return "\n".join(laid)


def _kilobytes(size: float | None) -> str:
  return "-" if size is None else f"{size / 1e3:,.1f}"


def _ratio(
  own: Mapping[str, float], base: Mapping[str, float], size: str
) -> str:
  return f"{own[size] / base[size]:.2f}x" if size in base else "-"
