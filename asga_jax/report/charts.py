"""The charts of runs: how they went, what they trade, and their policies."""

from collections.abc import Sequence

from asga_jax import policy as policy_lib
from asga_jax.report import bars, curves, figures, tables
from asga_jax.report import run as run_lib


def by_step(run: run_lib.Run) -> list[figures.Chart]:
  """Draw how a run went, a chart for each kind of figure; none of no steps."""
  if not run.records:
    return []
  steps = curves.column(run.records, "step")
  width = curves.window(len(steps))
  found = []
  for panel in curves.PANELS:
    for key, scale in ((panel.left, panel.scale), (panel.right, 1.0)):
      series = []
      of_key = curves.find(run.records, key) if key else {}
      for slot, (name, curve) in enumerate(of_key.items()):
        label = curves.label(name)
        if width > 1:
          series.append(
            figures.Series(label, steps, scale * curve, slot, faint=True)
          )
        mean = scale * curves.smooth(curve, width)
        series.append(figures.Series(label, steps, mean, slot))
      left = key == panel.left
      limit = panel.line if left else None
      if key == "radius":
        limit = run.rho_max
      title = panel.title if left else curves.label(key)
      found.append(figures.line_chart(title, series, limit=limit))
  return [chart for chart in found if chart]


def overlaid(runs: Sequence[run_lib.Run]) -> list[figures.Chart]:
  """Overlay the running means of each figure, a colour for each run."""
  found = []
  for panel in curves.PANELS:
    of_runs = [curves.find(run.records, panel.left) for run in runs]
    keys = dict.fromkeys(key for of_run in of_runs for key in of_run)
    for key in keys:
      series = []
      for slot, (run, of_run) in enumerate(zip(runs, of_runs, strict=True)):
        if key in of_run:
          steps = curves.column(run.records, "step")
          mean = curves.smooth(of_run[key], curves.window(len(steps)))
          series.append(
            figures.Series(run.name, steps, panel.scale * mean, slot)
          )
      title = panel.title if key == panel.left else key.replace("_", " ")
      found.append(figures.line_chart(title, series, limit=panel.line))
  return [chart for chart in found if chart]


def measured(run: run_lib.Run) -> list[figures.Chart]:
  """Draw the accuracies that were measured after a search, against cost."""
  if run.measured is None:
    return []
  unit, cost = run.measured["unit"], run.measured["cost"]
  series = []
  for slot, (kind, label) in enumerate(
    (("searched", "searched bits"), ("uniform", "uniform bits"))
  ):
    rows = sorted(
      (row["cost"], 100 * row["accuracy"])
      for row in run.measured["policies"]
      if row["kind"] == kind
    )
    x, y = ([row[axis] for row in rows] for axis in (0, 1))
    series.append(figures.Series(label, x, y, slot, faint=True))
    series.append(figures.Series(label, x, y, slot, "points"))
  of_float = run.measured["float_accuracy"]
  what = run.measured.get("what", "accuracy").capitalize()
  chart = figures.line_chart(
    f"{what} (%) at each cost" + "; dashed: float" * (of_float is not None),
    series,
    x_label=f"{cost} ({unit})" if unit else cost,
    limit=None if of_float is None else 100 * of_float,
  )
  return [chart] if chart else []


def pareto(runs: Sequence[run_lib.Run]) -> list[figures.Chart]:
  """Draw the Pareto curves of runs that have one, a chart for each cost."""
  several = len(runs) > 1
  curves_of: dict[tuple[str, str], list[figures.Series]] = {}
  for slot, run in enumerate(runs):
    if run.pareto is None:
      continue
    unit, score = run.pareto["unit"], run.pareto["score"]
    name = f"{run.pareto['cost']} ({unit})" if unit else run.pareto["cost"]
    series = curves_of.setdefault((f"score ({score})", name), [])
    for part, label, kind, color in (
      ("points", "best policies", "steps", slot),
      ("uniform", "uniform bits", "points", slot if several else 1),
    ):
      rows = sorted(run.pareto[part], key=lambda row: row["cost"])
      series.append(
        figures.Series(
          f"{run.name}: {label}" if several else label,
          [row["cost"] for row in rows],
          [row["score"] for row in rows],
          color,
          kind,
        )
      )
  found = [
    figures.line_chart(title, series, x_label=name)
    for (title, name), series in curves_of.items()
  ]
  return [chart for chart in found if chart]


def of_policy(policy: policy_lib.Policy) -> list[figures.Chart]:
  """Draw bits and cost shares of the layers."""
  layers = policy.layers

  def of_bits(kind: str, field: str) -> list[bars.Bar]:
    return [
      bars.Bar(
        min(getattr(layer, field), tables.MOST_BITS),
        str(getattr(layer, field)),
        f"{path}: {getattr(layer, field)} bits for the {kind}",
        hollow=not layer.searched,
      )
      for path, layer in layers.items()
    ]

  def of_shares(what: str, values: Sequence[int]) -> list[bars.Bar]:
    shares = tables.shares(values)
    return [
      bars.Bar(
        share,
        f"{100 * share:.0f}",
        f"{path}: {100 * share:.1f} % of the {what}",
        hollow=not layer.searched,
      )
      for share, (path, layer) in zip(shares, layers.items(), strict=True)
    ]

  return [
    bars.mirrored_bars(
      "Bits of each layer (hollow: not searched)",
      list(layers),
      of_bits("weights", "weight_bits"),
      of_bits("activations", "activation_bits"),
      ("weights", "activations"),
    ),
    bars.mirrored_bars(
      "Share of the cost (%)",
      list(layers),
      of_shares("BOPs", [x.bops for x in layers.values()]),
      of_shares("size", [x.weights * x.weight_bits for x in layers.values()]),
      ("BOPs", "size"),
    ),
  ]
