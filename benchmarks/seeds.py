"""A table of policies over seeds, with paired differences."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import terminal
from scipy import special

Row = dict[str, Any]


def interval(values: Sequence[float]) -> str:
  """Say a mean with its 95 % t-interval over two seeds or more."""
  mean, count = statistics.mean(values), len(values)
  spread = statistics.stdev(values) / count**0.5 if count > 1 else math.inf
  reach = spread * float(special.stdtrit(max(count - 1, 1), 0.975))
  return f"{mean:.2f} ({mean - reach:.2f} to {mean + reach:.2f})"


def format_table(kind: str, rows: dict[str, list[Row]]) -> str:
  """Lay out top-1 by method and seed, and its difference from others."""
  table = []
  top1 = {name: [x["top1"] for x in cells] for name, cells in rows.items()}
  for name, found in top1.items():
    line = {kind: name, "top-1 %": f"{statistics.mean(found):.2f}"}
    for other in ("uniform", "random"):
      theirs = top1.get(other, found)
      above = [x - y for x, y in zip(found, theirs, strict=True)]
      line[f"above {other}"] = interval(above) if theirs is not found else "-"
    trained = statistics.mean(x["train_top1"] for x in rows[name])
    used = [x["budget_used"] for x in rows[name]]
    line["train %"] = f"{trained:.2f}"
    line["budget %"] = f"{min(used):.1f}-{max(used):.1f}"
    line["by seed"] = "  ".join(f"{value:.2f}" for value in found)
    table.append(line)
  return terminal.table(table)
