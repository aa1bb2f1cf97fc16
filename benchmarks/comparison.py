"""A policy, uniform bits and the float network on the same images."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import tabulate

from asga_jax.scores import intervals, measured

# All parts together.
ALL = "all"


def compare(
  labels: Mapping[str, np.ndarray],
  plain: Mapping[str, np.ndarray],
  uniform: Mapping[str, np.ndarray],
  policy: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """Compare three networks on each part, and on all parts together."""
  parts = {part: [part] for part in labels} | {ALL: list(labels)}
  found = {}
  for part, names in parts.items():
    truth, *given = (
      np.concatenate([each[name] for name in names])
      for each in (labels, plain, uniform, policy)
    )
    hits = [each.argmax(1) == truth for each in given]
    alike = [each.argmax(1) == given[0].argmax(1) for each in given]
    apart = [
      np.asarray(measured.kl_divergence(*map(jnp.asarray, (given[0], x))))
      for x in given
    ]
    less = apart[1] - apart[2]
    reach = 1.96 * less.std(ddof=1) / math.sqrt(len(less))
    found[part] = {
      "images": len(truth),
      "top1": [float(x.mean()) for x in hits],
      "agreement": [float(x.mean()) for x in alike],
      "divergence": [float(x.mean()) for x in apart],
      "gain": intervals.difference(hits[2], hits[1])[:3],
      "agreement_gain": intervals.difference(alike[2], alike[1])[:3],
      "divergence_saved": [
        float(x)
        for x in (less.mean(), less.mean() - reach, less.mean() + reach)
      ],
    }
  return found


def format_rows(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """Lay out every network, budget and part."""
  headers = (
    "network",
    "budget",
    "images",
    "float\ntop-1 %",
    "uniform",
    "policy",
    "gain, points (95 %)",
    "uniform\nas float %",
    "policy",
    "gain, points (95 %)",
    "uniform\nnats",
    "policy",
    "saved (95 %)",
  )
  table = [
    (
      f"{name}, {part}",
      budget.removeprefix("bops="),
      row["images"],
      *(f"{100 * x:.2f}" for x in row["top1"]),
      _interval(row["gain"]),
      *(f"{100 * x:.2f}" for x in row["agreement"][1:]),
      _interval(row["agreement_gain"]),
      *(f"{x:.4f}" for x in row["divergence"][1:]),
      _interval(row["divergence_saved"], scale=1, digits=4),
    )
    for name, budgets in rows.items()
    for budget, parts in budgets.items()
    for part, row in parts.items()
  ]
  return tabulate.tabulate(
    table, headers, tablefmt="plain", disable_numparse=True
  )


def _interval(
  given: Sequence[float], scale: float = 100, digits: int = 2
) -> str:
  value, low, high = (f"{scale * x:.{digits}f}" for x in given)
  return f"{value} ({low} to {high})"
