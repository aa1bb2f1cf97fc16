"""The page that puts several runs side by side."""

import json
from collections.abc import Sequence

from asga_jax import policy as policy_lib
from asga_jax.report import charts, curves, markup
from asga_jax.report import run as run_lib
from asga_jax.report import search_page as run_page

_KINDS = {"search": "search", "finetune": "fine-tuning"}


def make_page(runs: Sequence[run_lib.Run]) -> str:
  """Make the page that compares searches and fine-tunings.

  Args:
    runs: two or more, of different names.

  Returns:
    HTML that needs no other file, no network and no JavaScript.
  """
  names = [run.name for run in runs]
  warnings = [
    f"{run.name}: {sentence}" for run in runs for sentence in run.warnings()
  ]
  return markup.page(
    f"{len(runs)} runs compared",
    (
      markup.paragraph(", ".join(str(run.path) for run in runs), quiet=True),
      markup.section("Figures", markup.table(["", *names], _figures(runs))),
      markup.section("Warnings", markup.warning_list(warnings)),
      markup.section("Bits per layer", _bits(runs)),
      markup.section("Score against cost", run_page.pareto_chart(runs)),
      markup.section("Step by step", _curves(runs)),
      markup.section("What differs in the configuration", _differences(runs)),
    ),
  )


def _figures(
  runs: Sequence[run_lib.Run],
) -> list[tuple[str | markup.Cell, ...]]:
  """Tabulate the headline figures, a column for each run."""
  found = [
    {
      "kind": _KINDS[run.kind],
      "budget": run.policy.budget
      if run.policy
      else run.config.get("budget", "none: float"),
      "steps": f"{run.steps_done} of {run.setting('steps')}",
      **{name: value for name, value, _ in run_page.headline(run)},
    }
    for run in runs
  ]
  keys = dict.fromkeys(key for figures in found for key in figures)
  return [
    (key, *(markup.Cell(figures.get(key, "-")) for figures in found))
    for key in keys
  ]


def _bits(runs: Sequence[run_lib.Run]) -> str:
  """Tabulate weight and activation bits of every layer of any run."""
  decided = [run for run in runs if run.policy]
  policies = [run.policy.layers for run in decided if run.policy]
  if not policies:
    return markup.paragraph("None of these runs has a policy.")
  paths = dict.fromkeys(path for layers in policies for path in layers)
  rows: list[tuple[str | markup.Cell, ...]] = []
  for path in paths:
    found = [layers.get(path) for layers in policies]
    rows.append((path, *(_pair(layer) for layer in found)))
  return markup.table(
    ["layer", *(run.name for run in decided)], rows
  ) + markup.paragraph(
    "Weight bits / activation bits; the darker, the more BOPs for each MAC.",
    quiet=True,
  )


def _pair(layer: policy_lib.LayerPolicy | None) -> markup.Cell:
  if layer is None:
    return markup.Cell("-")
  product = layer.weight_bits * layer.activation_bits
  # 8/8 is the darkest: float layers beside it may be as dark.
  return markup.Cell(
    f"{layer.weight_bits} / {layer.activation_bits}", heat=product / 64
  )


def _curves(runs: Sequence[run_lib.Run]) -> str:
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
            charts.Series(run.name, steps, panel.scale * mean, slot)
          )
      title = panel.title if key == panel.left else key.replace("_", " ")
      found.append(charts.line_chart(title, series, limit=panel.line))
  if not found:
    return ""
  return f'<div class="charts">{"".join(found)}</div>' + markup.paragraph(
    "Running means; the pages of the runs show each step.", quiet=True
  )


def _differences(runs: Sequence[run_lib.Run]) -> str:
  """Tabulate the keys whose values differ between any two runs."""
  flat = [run.config for run in runs]
  keys = sorted({key for config in flat for key in config})
  rows = []
  for key in keys:
    told = [
      json.dumps(config[key]) if key in config else "-" for config in flat
    ]
    if len(set(told)) > 1:
      rows.append((key, *told))
  if not rows:
    return markup.paragraph("Nothing: they have the same configuration.")
  return markup.table(["key", *(run.name for run in runs)], rows)
