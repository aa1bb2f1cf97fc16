"""The page of one search."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asga_jax import policy as policy_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.report import (
  charts,
  curves,
  evaluation_section,
  markup,
  policy_section,
)
from asga_jax.report import radius_health as radius_lib
from asga_jax.report import run as run_lib


def make_page(run: run_lib.Run) -> str:
  """Make the page of one search: what it found, and how it went.

  Args:
    run: as it was read from its work directory.

  Returns:
    HTML that needs no other file, no network and no JavaScript.
  """
  model = run.policy.model if run.policy else run.config["model"]
  return markup.page(
    f"{model} at {run.config['budget']}",
    (
      _standing(run),
      markup.figures(headline(run)),
      markup.section(
        "Warnings" if run.ended else "Warnings so far", _warnings(run)
      ),
      policy_section.make_section(run.policy) if run.policy else "",
      *map(evaluation_section.make_section, run.evaluations),
      markup.section("Score against cost", pareto_chart([run])),
      markup.section("The search, step by step", step_charts(run)),
      markup.section("How to go on", _next(run)),
      markup.section("Where it comes from", origin(run)),
    ),
  )


def _standing(run: run_lib.Run) -> str:
  total = run.setting("steps")
  if run.ended:
    text = f"The search in {run.path} has ended after {total} steps."
  else:
    text = (
      f"The search in {run.path} has not ended: step {run.steps_done} of "
      f"{total}. There is no policy yet."
    )
  return markup.paragraph(text, quiet=run.ended)


def headline(run: run_lib.Run) -> list[tuple[str, str, str]]:
  """Give the figures that count: name, value, remark."""
  found = _accuracies(run)
  if run.policy:
    cost, layers = run.policy.cost, run.policy.layers.values()
    whole = policy_lib.FLOAT_BITS**2 * sum(layer.macs for layer in layers)
    bops = float(cost["bops"])
    found += [
      (
        "budget used",
        f"{100 * float(cost['budget_used']):.2f} %",
        f"of {run.policy.budget}",
      ),
      (
        "BOPs",
        charts.number(bops),
        f"{100 * bops / max(whole, 1):.2f} % of float32",
      ),
      ("size", f"{charts.number(float(cost['size_bytes']))}B", "packed"),
    ]
    if "container_size_bytes" in cost:
      stored = charts.number(float(cost["container_size_bytes"]))
      found.append(
        ("stored size", f"{stored}B", "in types of 2, 4, 8, 16, 32 bits")
      )
    known = {"bops_convention", "budget_used", "container_size_bytes"}
    known |= {"bops", "size_bytes"}
    found += [
      (name, costs_lib.format_amount(name, float(value)), "")
      for name, value in cost.items()
      if name not in known
    ]
  last = run.records[-1] if run.records else {}
  if not run.ended and last.get("loss") is not None:
    found.append(("loss", f"{last['loss']:.4g}", f"step {last['step']}"))
  return found


def _accuracies(run: run_lib.Run) -> list[tuple[str, str, str]]:
  """Give what a run has reached: name, value, remark."""
  found = []
  part = ", some batches" if run.config.get("report_batches") else ""
  for name, value in run.summary.items():
    if name.endswith("_accuracy") and value is not None:
      found.append(
        (name.replace("_", " "), f"{100 * value:.1f} %", "on the proxy")
      )
    elif name.removeprefix("ema_") in ("top1", "top5", "loss"):
      kind = name.removeprefix("ema_")
      shown = "nothing finite" if value is None else f"{100 * value:.2f} %"
      if kind == "loss" and value is not None:
        shown = f"{value:.4f}"
      found.append(
        (
          kind.replace("top", "top-") + ", averaged" * (kind != name),
          shown,
          f"on {run.summary['data']}, test{part}",
        )
      )
  return found


def _warnings(run: run_lib.Run) -> str:
  found = run.warnings()
  if found:
    return markup.warning_list(found)
  if not run.records:
    return markup.paragraph("There are no records to judge by.")
  return markup.paragraph("None: what is measured looks as it should.")


def pareto_chart(runs: Sequence[run_lib.Run]) -> str:
  """Draw the Pareto curves of runs that have one, a chart for each cost."""
  several = len(runs) > 1
  curves_of: dict[tuple[str, str], list[charts.Series]] = {}
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
        charts.Series(
          f"{run.name}: {label}" if several else label,
          [row["cost"] for row in rows],
          [row["score"] for row in rows],
          color,
          kind,
        )
      )
  found = [
    charts.line_chart(title, series, x_label=name)
    for (title, name), series in curves_of.items()
  ]
  if not any(found):
    return ""
  note = "Higher is better; between two points the lower one holds. "
  if several:
    note += "Scores of two searches have no common scale: compare shapes."
  return (
    f'<div class="charts few">{"".join(found)}</div>'
    f"{markup.paragraph(note, quiet=True)}"
  )


def step_charts(run: run_lib.Run) -> str:
  """Draw how a run went, a chart for each kind of figure."""
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
            charts.Series(label, steps, scale * curve, slot, faint=True)
          )
          curve = curves.smooth(curve, width)
        series.append(charts.Series(label, steps, scale * curve, slot))
      left = key == panel.left
      limit = panel.line if left else None
      if key == "radius":
        limit = run.rho_max
      title = panel.title if left else curves.label(key)
      found.append(charts.line_chart(title, series, limit=limit))
  if not any(found):
    return markup.paragraph("No step has been recorded yet.")
  note = (
    "Dashed: zero, the budget, or the cap of the radius. Pale: each step; "
    f"full: the mean over {width} steps. " * (width > 1)
  )
  note += _radius_note(run)
  return f'<div class="charts">{"".join(found)}</div>' + (
    markup.paragraph(note, quiet=True) if note else ""
  )


def _radius_note(run: run_lib.Run) -> str:
  radii = curves.column(run.records, "radius")
  rho_max = run.rho_max
  if not np.isfinite(radii).any():
    return ""
  health = radius_lib.radius_health(radii, rho_max)
  text = f"Radius: at {rho_max:g} in {100 * health['share_at_max']:.0f} % of"
  text += " the steps"
  if np.isfinite(health["lag1_autocorrelation"]):
    text += f", lag-1 autocorrelation {health['lag1_autocorrelation']:.2f}"
  return text + "."


def _next(run: run_lib.Run) -> str:
  workdir = shlex.quote(str(run.path))
  if not run.ended:
    return markup.paragraph(
      "The command that started the search goes on from its last checkpoint. "
      "Then:"
    ) + markup.code([f"python launch/report.py --workdir={workdir}"])
  return markup.paragraph(
    "Another budget from the same search, and this page beside another run's:"
  ) + markup.code(
    [
      f"python launch/export.py --workdir={workdir} --budget=bops=3bit",
      f"python launch/report.py --workdir={workdir} --workdir=OTHER",
    ]
  )


def origin(run: run_lib.Run) -> str:
  """Tabulate the provenance of the policy and the configuration."""
  flat = run.provenance
  parts = [
    markup.table(["provenance", "value"], _rows(flat)) if flat else "",
    markup.folded(
      "Configuration",
      markup.table(["key", "value"], _rows(run.config)),
    ),
  ]
  return "".join(parts)


def _rows(flat: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Show values as JSON, but text without its quotes."""
  return [
    (key, value if isinstance(value, str) else json.dumps(value))
    for key, value in flat.items()
  ]
