"""The tables of a page: rows of text, and of cells that are also drawn."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from asga_jax import policy as policy_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.report import figures
from asga_jax.report import run as run_lib

# Bars of more bits (32 for float) are cut here; their text tells the number.
MOST_BITS = 9
_MISTAKES = 10
_KINDS = {
  "search": "search",
  "finetune": "fine-tuning",
  "quantization": "quantization without training",
}


class Cell(NamedTuple):
  """A cell of a table that stands right: its text, and how it is drawn."""

  text: str
  # In [0, 1]: drawn as a bar behind the text.
  share: float | None = None
  # In [0, 1]: drawn as the depth of the colour.
  heat: float | None = None


# The first cell of a row is its name; text stands left.
Row = tuple[str | Cell, ...]


class Table(NamedTuple):
  """A table: the names of its columns, its rows, and perhaps one of totals."""

  head: Sequence[str]
  rows: Sequence[Row]
  foot: Row = ()


class Figure(NamedTuple):
  """A figure that stands out: its name, value, and a remark."""

  name: str
  value: str
  remark: str = ""


def headline(run: run_lib.Run) -> list[Figure]:
  """Give the figures of a run that count."""
  found = _accuracies(run)
  if run.policy:
    found += _costs(run.policy)
  last = run.records[-1] if run.records else {}
  if not run.ended and last.get("loss") is not None:
    found.append(Figure("loss", f"{last['loss']:.4g}", f"step {last['step']}"))
  return found


def _costs(policy: policy_lib.Policy) -> list[Figure]:
  """Give what a policy costs."""
  cost = dict(policy.cost)
  cost.pop("bops_convention", None)
  used, bops, size = (
    float(cost.pop(name)) for name in ("budget_used", "bops", "size_bytes")
  )
  whole = policy_lib.FLOAT_BITS**2 * sum(
    layer.macs for layer in policy.layers.values()
  )
  found = [
    Figure("budget used", f"{100 * used:.2f} %", f"of {policy.budget}"),
    Figure(
      "BOPs",
      figures.number(bops),
      f"{100 * bops / max(whole, 1):.2f} % of float32",
    ),
    Figure("size", f"{figures.number(size)}B", "packed"),
  ]
  stored = cost.pop("container_size_bytes", None)
  if stored is not None:
    amount = f"{figures.number(float(stored))}B"
    remark = "in types of 2, 4, 8, 16, 32 bits"
    found.append(Figure("stored size", amount, remark))
  return found + [
    Figure(name, costs_lib.format_amount(name, float(value)))
    for name, value in cost.items()
  ]


def _accuracies(run: run_lib.Run) -> list[Figure]:
  """Give what a run has reached."""
  found = []
  part = ", some batches" if run.config.get("report_batches") else ""
  where = "on the proxy"
  if run.kind == "quantization":
    where = f"on {run.summary.get('report_images')} images"
  for name, value in run.summary.items():
    kind = name.removeprefix("ema_")
    if name.endswith(("_accuracy", "agreement")) and value is not None:
      shown = f"{100 * value:.1f} %"
      found.append(Figure(name.replace("_", " "), shown, where))
    elif kind in ("top1", "top5", "loss"):
      if value is None:
        shown = "nothing finite"
      else:
        shown = f"{value:.4f}" if kind == "loss" else f"{100 * value:.2f} %"
      label = kind.replace("top", "top-") + ", averaged" * (kind != name)
      remark = f"on {run.summary['data']}, test{part}"
      found.append(Figure(label, shown, remark))
  return found


def shares(values: Sequence[int]) -> list[float]:
  """Divide values by their sum."""
  return [value / max(sum(values), 1) for value in values]


def layers_of(policy: policy_lib.Policy) -> Table:
  """Tabulate a policy, a row for each layer."""
  layers = policy.layers.values()
  bops = shares([layer.bops for layer in layers])
  size = shares([layer.weights * layer.weight_bits for layer in layers])
  rows: list[Row] = [
    (
      path,
      *(
        Cell(str(bits), heat=min(bits, MOST_BITS) / MOST_BITS)
        for bits in (layer.weight_bits, layer.activation_bits)
      ),
      Cell(f"{layer.macs / 1e6:.2f}"),
      Cell(f"{layer.weights / 1e3:.1f}"),
      Cell(f"{100 * bops[i]:.1f}", share=bops[i]),
      Cell(f"{100 * size[i]:.1f}", share=size[i]),
      "" if layer.searched else "fixed",
    )
    for i, (path, layer) in enumerate(policy.layers.items())
  ]
  return Table(
    (
      "layer",
      "weight bits",
      "activation bits",
      "MACs (M)",
      "weights (k)",
      "BOPs (%)",
      "size (%)",
      "",
    ),
    rows,
    (
      "total",
      Cell(""),
      Cell(""),
      Cell(f"{sum(layer.macs for layer in layers) / 1e6:.2f}"),
      Cell(f"{sum(layer.weights for layer in layers) / 1e3:.1f}"),
      Cell(figures.number(sum(layer.bops for layer in layers))),
      Cell(""),
      "",
    ),
  )


def networks_of(evaluation: Mapping[str, Any]) -> Table:
  """Tabulate an evaluation, a row for each network."""
  return Table(
    ("network", "top-1", "top-5", "loss"),
    [
      (
        label,
        *(Cell(f"{100 * x[name]:.2f} %") for name in ("top1", "top5")),
        Cell(f"{x['loss']:.4f}"),
      )
      for label, x in evaluation["networks"].items()
    ],
  )


def shares_of_classes(confusion: np.ndarray) -> np.ndarray:
  """Divide each row by the images of its class; shape (classes, classes)."""
  found: np.ndarray = confusion / np.maximum(
    confusion.sum(axis=1, keepdims=True), 1
  )
  return found


def mistakes(confusion: np.ndarray, names: Sequence[str]) -> Table:
  """Tabulate the mistakes that are made most often."""
  wrong = confusion * ~np.eye(len(names), dtype=bool)
  of_class = shares_of_classes(confusion)
  rows: list[Row] = []
  for place in np.argsort(-wrong, axis=None, kind="stable")[:_MISTAKES]:
    row, column = np.unravel_index(place, wrong.shape)
    if wrong[row, column]:
      share = float(of_class[row, column])
      rows.append(
        (
          names[row],
          names[column],
          Cell(str(wrong[row, column])),
          Cell(f"{100 * share:.1f}", share=share),
        )
      )
  return Table(("class", "taken for", "images", "% of the class"), rows)


def values(names: tuple[str, str], flat: Mapping[str, Any]) -> Table:
  """Tabulate values as JSON, but text without its quotes."""
  return Table(
    names,
    [
      (key, value if isinstance(value, str) else json.dumps(value))
      for key, value in flat.items()
    ],
  )


def side_by_side(runs: Sequence[run_lib.Run]) -> Table:
  """Tabulate the headline figures, a column for each run."""
  columns = [
    {
      "kind": _KINDS[run.kind],
      "budget": run.policy.budget
      if run.policy
      else run.config.get("budget", "none: float"),
      "steps": _steps(run),
      **{figure.name: figure.value for figure in headline(run)},
    }
    for run in runs
  ]
  keys = dict.fromkeys(key for column in columns for key in column)
  return Table(
    ["", *(run.name for run in runs)],
    [(key, *(Cell(x.get(key, "-")) for x in columns)) for key in keys],
  )


def _steps(run: run_lib.Run) -> str:
  if run.kind == "quantization":
    return "none"
  return f"{run.steps_done} of {run.setting('steps')}"


def bits(runs: Sequence[run_lib.Run]) -> Table:
  """Tabulate the bits of every layer, a column for each run with a policy."""
  decided = {run.name: run.policy.layers for run in runs if run.policy}
  paths = dict.fromkeys(path for layers in decided.values() for path in layers)
  return Table(
    ["layer", *decided],
    [
      (path, *(_pair(layers.get(path)) for layers in decided.values()))
      for path in paths
    ],
  )


def _pair(layer: policy_lib.LayerPolicy | None) -> Cell:
  if layer is None:
    return Cell("-")
  both = layer.weight_bits, layer.activation_bits
  # 8/8 is the darkest: float layers beside it may be as dark.
  return Cell(f"{both[0]} / {both[1]}", heat=min(both[0] * both[1] / 64, 1))


def differences(runs: Sequence[run_lib.Run]) -> Table:
  """Tabulate the settings whose values differ between any two runs."""
  rows: list[Row] = []
  for key in sorted({key for run in runs for key in run.config}):
    told = [
      json.dumps(run.config[key]) if key in run.config else "-" for run in runs
    ]
    if len(set(told)) > 1:
      rows.append((key, *told))
  return Table(["key", *(run.name for run in runs)], rows)
