"""A table of policies over seeds, with paired differences."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

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
  title = f"{kind:24}{'top-1 %':>8}  {'above uniform':24}{'above random':24}"
  lines = [f"{title}{'train %':9}{'budget %':14}by seed"]
  top1 = {name: [x["top1"] for x in cells] for name, cells in rows.items()}
  for name, found in top1.items():
    line = f"{name:24}{statistics.mean(found):>8.2f}  "
    for other in ("uniform", "random"):
      theirs = top1.get(other, found)
      above = [x - y for x, y in zip(found, theirs, strict=True)]
      line += f"{interval(above) if theirs is not found else '-':24}"
    line += f"{statistics.mean(x['train_top1'] for x in rows[name]):<9.2f}"
    used = [x["budget_used"] for x in rows[name]]
    line += f"{f'{min(used):.1f}-{max(used):.1f}':14}"
    lines.append(line + "  ".join(f"{value:.2f}" for value in found))
  return "\n".join(lines)
