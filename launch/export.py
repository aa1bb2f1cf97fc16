"""Writes what a finished search found, for its budget or every budget.

python launch/export.py --workdir=DIR --format=policy --output=policy.json
python launch/export.py --workdir=DIR --format=onnx --output=network.onnx
python launch/export.py --workdir=DIR --pareto --cost=size
"""

import dataclasses
import logging as std_logging
import pathlib
import sys

from absl import app, flags, logging

from asga_jax import (
  every_budget,
  export_run,
  pareto_curve,
  policy_table,
  search_run,
)
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.cost import latency_table

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The work directory of a search.", required=True
)
_FORMAT = flags.DEFINE_enum(
  "format",
  "policy",
  ["policy", *export_run.FORMATS],
  "What to write: the policy, or the network at it with the search's weights.",
)
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "Where to; by default policy.json in the work directory, or "
  "policy-BUDGET-SCORE.json where these are given; network.onnx, "
  ".stablehlo or the directory network.orbax; with --pareto pareto.json, "
  "or pareto-COST-BUDGET-SCORE.json, and beside it the picture, .png.",
)
_BUDGET = flags.DEFINE_string(
  "budget",
  None,
  "Another budget, from the same scores, such as bops=3bit; with --pareto, "
  "what every point is to meet besides.",
)
_LATENCY_TABLE = flags.DEFINE_string(
  "latency_table",
  None,
  "A table for latency budgets, by default the one of the search.",
)
_SCORE = flags.DEFINE_enum(
  "score", None, result_lib.SCORES, "Another score to choose by."
)
_PARETO = flags.DEFINE_bool(
  "pareto", False, "Write the exact curve of score against cost."
)
_COST = flags.DEFINE_string("cost", None, "The curve's cost; bops by default.")
_POINTS = flags.DEFINE_integer(
  "points", None, "The largest number of points of the curve; 40 by default."
)


def check_flags() -> None:
  """Check that the flags fit together; ValueError if not."""
  if not _PARETO.value:
    for flag in (_COST, _POINTS):
      if flag.value is not None:
        raise ValueError(
          f"--{flag.name}={flag.value} is of a Pareto curve; expected --pareto "
          "with it."
        )
  elif flags.FLAGS["format"].present:
    raise ValueError(
      f"--format={_FORMAT.value} and --pareto; expected one of them."
    )
  elif _OUTPUT.value and pathlib.Path(_OUTPUT.value).suffix == ".png":
    raise ValueError(
      f"--output={_OUTPUT.value} is where the picture goes; expected the name "
      "of the JSON file."
    )


def restore() -> result_lib.SearchResult:
  """Read the search, with the latency table that is asked for."""
  table = _LATENCY_TABLE.value
  costs = (latency_table.load_latency(table),) if table else None
  found = search_run.restore(_WORKDIR.value)
  return dataclasses.replace(found, costs=costs) if costs else found


def export_policy() -> None:
  """Write the policy of a budget, or the network at that policy."""
  kind = _FORMAT.value
  if kind != "policy":
    # A search takes a while to read.
    export_run.check(kind, _OUTPUT.value or f"{_WORKDIR.value}/network")
  found = restore()
  policy = result_lib.allocate(found, budget=_BUDGET.value, score=_SCORE.value)
  stem = "policy" if kind == "policy" else "network"
  suffix = ".json" if kind == "policy" else export_run.FORMATS[kind].suffix
  chosen = (_BUDGET.value and policy.budget, _SCORE.value)
  name = "-".join([stem, *filter(None, chosen)]) + suffix
  output = _OUTPUT.value or f"{_WORKDIR.value}/{name}"
  if kind == "policy":
    policy_lib.save(policy, output)
    print(policy_table.format_table(policy))
    print(f"written to {output}")
  else:
    network = export_run.from_search(_WORKDIR.value, found, policy)
    print(export_run.write(network, kind, output))


def export_pareto() -> None:
  """Write the Pareto curve and its picture."""
  found = restore()
  curve = every_budget.pareto(
    found,
    cost=_COST.value or "bops",
    score=_SCORE.value,
    budget=_BUDGET.value,
    **({} if _POINTS.value is None else {"points": _POINTS.value}),
  )
  given = (_COST.value, _BUDGET.value and curve.budget, _SCORE.value)
  name = "-".join(["pareto", *filter(None, given)])
  output = pathlib.Path(_OUTPUT.value or f"{_WORKDIR.value}/{name}.json")
  picture = every_budget.write(curve, output)
  print(pareto_curve.format_table(curve))
  whole = "the whole curve" if curve.complete else "more lie between"
  print(f"{len(curve.points)} points ({whole}) written to {output}, {picture}")


def main(argv: list[str]) -> None:
  """Restore the search and write what was asked for."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {argv[1:]}")
  logging.set_verbosity(logging.INFO)
  std_logging.getLogger("jax").setLevel(std_logging.WARNING)
  try:
    check_flags()
    if _PARETO.value:
      export_pareto()
    else:
      export_policy()
  except (ValueError, OSError) as error:
    logging.error("%s: %s", type(error).__name__, error)
    sys.exit(1)


if __name__ == "__main__":
  app.run(main)
