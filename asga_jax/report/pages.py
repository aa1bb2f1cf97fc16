"""The page of a run, and the one that compares several."""

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from asga_jax.report import charts, confusion, curves, tables, verdict
from asga_jax.report import radius_health as radius_lib
from asga_jax.report import run as run_lib

_TEMPLATE = "page.html.j2"


def make_page(runs: Sequence[run_lib.Run]) -> str:
  """Make the page of one run, or one that compares several.

  Args:
    runs: one or more, of different names.

  Returns:
    HTML that needs no other file, no network and no JavaScript.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  shown = _one(runs[0]) if len(runs) == 1 else _several(runs)
  page = environment.get_template(_TEMPLATE).render(
    **shown, pareto=charts.pareto(runs)
  )
  # Half a surrogate pair, which JSON can hold, has no bytes in UTF-8.
  return page.encode("utf-8", "replace").decode("utf-8")


def _one(run: run_lib.Run) -> dict[str, Any]:
  """Gather what the page of a run shows."""
  model = run.config["model"]
  if run.kind != "finetune":
    model = run.policy.model if run.policy else model
    title = f"{model} at {run.config['budget']}"
  else:
    at = run.policy.budget if run.policy else "in float"
    title = f"{model} on {run.config['data.name']}, {at}"
  return {
    "title": title,
    "run": run,
    "workdir": shlex.quote(str(run.path)),
    "headline": tables.headline(run),
    "verdict": verdict.sentence(run.summary),
    "measured": charts.measured(run),
    "warnings": run.warnings(),
    "policy": _policy(run),
    "evaluations": [_evaluation(found) for found in run.evaluations],
    "steps": charts.by_step(run),
    "window": curves.window(len(run.records)),
    "health": _health(run),
    "provenance": tables.values(("provenance", "value"), run.provenance),
    "configuration": tables.values(("key", "value"), run.config),
  }


def _policy(run: run_lib.Run) -> dict[str, Any] | None:
  if not run.policy:
    return None
  return {
    "convention": str(run.policy.cost["bops_convention"]).replace("_", " "),
    "charts": charts.of_policy(run.policy),
    "table": tables.layers_of(run.policy),
  }


def _evaluation(evaluation: Mapping[str, Any]) -> dict[str, Any]:
  """Gather an evaluation, and the mistakes of its first network."""
  names = evaluation["class_names"]
  first = next(iter(evaluation["networks"].values()))
  counts = np.asarray(first["confusion"], np.int64)
  return {
    **evaluation,
    "table": tables.networks_of(evaluation),
    "matrix": confusion.matrix(
      "Rows: classes. Columns: what they are taken for (%)",
      tables.shares_of_classes(counts),
      names,
    ),
    "mistakes": tables.mistakes(counts, names),
  }


def _health(run: run_lib.Run) -> Mapping[str, float] | None:
  """Measure the radius; None where there was none."""
  radii = curves.column(run.records, "radius")
  if not np.isfinite(radii).any():
    return None
  return radius_lib.radius_health(radii, run.rho_max)


def _several(runs: Sequence[run_lib.Run]) -> dict[str, Any]:
  """Gather what the page that compares runs shows."""
  return {
    "title": f"{len(runs)} runs compared",
    "run": None,
    "runs": runs,
    "figures": tables.side_by_side(runs),
    "warnings": [
      f"{run.name}: {sentence}" for run in runs for sentence in run.warnings()
    ],
    "bits": tables.bits(runs),
    "steps": charts.overlaid(runs),
    "differences": tables.differences(runs),
  }
