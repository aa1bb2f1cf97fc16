"""Writes what a finished run found or trained, and says what it is worth.

python launch/export.py --workdir=DIR --format=policy --output=policy.json
python launch/export.py --workdir=DIR --format=onnx --output=network.onnx
python launch/export.py --workdir=DIR --format=onnx --format=packed
python launch/export.py --workdir=DIR --pareto --cost=size
"""

import dataclasses
import logging as std_logging
import pathlib
import sys

import process
from absl import app, flags, logging

from asga_jax import every_budget, files
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.allocation import curve as pareto_curve
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import latency_table
from asga_jax.deploy import formats as export_formats
from asga_jax.report import pareto_plot, policy_table
from asga_jax.runs import command, export_table
from asga_jax.runs import data as run_data
from asga_jax.runs import export as export_run
from asga_jax.runs import measure as export_report
from asga_jax.runs import read as trained_runs
from asga_jax.runs import search as search_run

_WORKDIR = flags.DEFINE_string(
  "workdir",
  "",
  "The work directory of a search or a fine-tuning.",
)
_FORMAT = flags.DEFINE_multi_enum(
  "format",
  ["policy"],
  ["policy", *export_formats.FORMATS],
  "What to write: the policy, or the network at it with the weights of the "
  "run. May be given several times.",
)
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "Where to; with several formats the directory. By default, in the work "
  "directory, policy.json, or policy-BUDGET-SCORE.json where these are given; "
  "network.onnx, .stablehlo, .safetensors (packed) or the directory "
  "network.orbax; with --pareto pareto.json, or pareto-COST-BUDGET-SCORE.json, "
  "and beside it the picture, .png.",
)
_REPORT = flags.DEFINE_bool(
  "report",
  True,
  "Run what was written on the test split, print a table, and write it beside "
  "the output: -report.json and .png.",
)
_BATCHES = flags.DEFINE_integer(
  "batches", 0, "Batches of the test split that are run; 0 for all."
)
_REPEATS = flags.DEFINE_integer(
  "repeats",
  export_report.REPEATS,
  "Runs of every file that latencies rest on; 0 for none.",
)
_AVERAGED = flags.DEFINE_bool(
  "averaged", False, "Take the running average that a fine-tuning kept."
)
_BUDGET = flags.DEFINE_string(
  "budget",
  None,
  "Of a search: another budget, from the same scores, such as bops=3bit; with "
  "--pareto, what every point is to meet besides.",
)
_LATENCY_TABLE = flags.DEFINE_string(
  "latency_table",
  None,
  "Of a search: a table for latency budgets, by default its own.",
)
_SCORE = flags.DEFINE_enum(
  "score", None, result_lib.SCORES, "Of a search: another score to choose by."
)
_PARETO = flags.DEFINE_bool(
  "pareto", False, "Of a search: write the exact curve of score against cost."
)
_COST = flags.DEFINE_string("cost", None, "The curve's cost; bops by default.")
_POINTS = flags.DEFINE_integer(
  "points", None, "The largest number of points of the curve; 40 by default."
)
# By what they only fit.
_OF_CURVE = (_COST, _POINTS)
_OF_SEARCH = (_BUDGET, _LATENCY_TABLE, _SCORE, _PARETO, *_OF_CURVE)
_OF_REPORT = (_BATCHES, _REPEATS)
_OF_NETWORK = (_AVERAGED, _REPORT, *_OF_REPORT)


def networks() -> list[str]:
  """List the formats that hold a network, each once."""
  return [name for name in dict.fromkeys(_FORMAT.value) if name != "policy"]


def refuse(of_what: str, expected: str, *holders: flags.FlagHolder) -> None:
  """Raise ValueError if one of these flags is given."""
  for flag in holders:
    if flag.present:
      raise ValueError(
        f"--{flag.name}={flag.value} is of {of_what}; expected {expected}"
      )


def check_flags() -> None:
  """Check that the flags fit together; ValueError if not."""
  if _PARETO.value:
    if _FORMAT.present:
      raise ValueError(
        f"--format={_FORMAT.value[0]} and --pareto; expected one of them."
      )
    if _OUTPUT.value and pathlib.Path(_OUTPUT.value).suffix == ".png":
      raise ValueError(
        f"--output={_OUTPUT.value} is where the picture goes; expected the "
        "name of the JSON file."
      )
  else:
    refuse("a Pareto curve", "--pareto with it.", *_OF_CURVE)
  if not networks():
    known = ", ".join(export_formats.FORMATS)
    refuse("a network", f"--format with it, one of {known}.", *_OF_NETWORK)
  if not _REPORT.value:
    refuse("the report", "no --report=false beside it.", *_OF_REPORT)
  for flag in _OF_REPORT:
    if flag.value < 0:
      raise ValueError(f"--{flag.name}={flag.value}; expected at least 0.")


def check_run() -> bool:
  """Tell whether the run is a search; ValueError if flags do not fit it."""
  searched = trained_runs.is_search(_WORKDIR.value)
  if searched:
    refuse(
      "a fine-tuning",
      f"the work directory of one, and {_WORKDIR.value} is of a search.",
      _AVERAGED,
    )
  else:
    refuse(
      "a search",
      f"the work directory of one, and {_WORKDIR.value} is of a fine-tuning.",
      *_OF_SEARCH,
    )
  return searched


def restore() -> result_lib.SearchResult:
  """Read the search, with the latency table that is asked for."""
  table = _LATENCY_TABLE.value
  costs = (latency_table.load_latency(table),) if table else None
  found = search_run.restore(_WORKDIR.value)
  return dataclasses.replace(found, costs=costs) if costs else found


def place(stem: str, suffix: str) -> pathlib.Path:
  """Name a file by what it was chosen by, where --output does not."""
  several = len(set(_FORMAT.value)) > 1
  if _OUTPUT.value and not several:
    return pathlib.Path(_OUTPUT.value)
  parts = [stem]
  if _AVERAGED.value and stem == "network":
    parts.append("averaged")
  if _BUDGET.value:
    parts.append(str(budget_lib.parse_budget(_BUDGET.value)))
  if _SCORE.value:
    parts.append(_SCORE.value)
  name = "-".join(parts) + suffix
  return pathlib.Path(_OUTPUT.value or _WORKDIR.value, name)


def export() -> None:
  """Write the policy, the network in every format, and the report."""
  searched = check_run()
  directory = pathlib.Path(_WORKDIR.value)
  written = {
    name: place("network", export_formats.FORMATS[name].suffix)
    for name in networks()
  }
  if _OUTPUT.value and len(set(_FORMAT.value)) > 1:
    pathlib.Path(_OUTPUT.value).mkdir(parents=True, exist_ok=True)
  # A run takes a while to read.
  for name, path in written.items():
    export_run.check(name, path)
  if "policy" in _FORMAT.value:
    files.check_writable(place("policy", ".json"))
  policy: policy_lib.Policy | None
  if searched:
    found = restore()
    policy = chosen = result_lib.allocate(
      found, budget=_BUDGET.value, score=_SCORE.value
    )
  else:
    trained = trained_runs.read(directory)
    policy = trained.policy
    check_policy(policy)
  if policy is not None and "policy" in _FORMAT.value:
    output = place("policy", ".json")
    policy_lib.save(policy, output)
    print(policy_table.format_table(policy))
    print(f"written to {output}")
  if not written:
    return
  data = run_data.of_run(directory) if searched or _REPORT.value else None
  if searched:
    assert data is not None
    network = export_run.from_search(found, chosen, data)
  else:
    network = export_run.from_finetune(trained, averaged=_AVERAGED.value)
  for name, path in written.items():
    print(export_run.write(network, name, path))
  if _REPORT.value:
    assert data is not None
    print_report(network, written, data)


def check_policy(policy: policy_lib.Policy | None) -> None:
  """Raise ValueError if a format needs a policy and there is none."""
  needing = [name for name in _FORMAT.value if name in ("policy", "packed")]
  if policy is None and needing:
    others = [name for name in export_formats.FORMATS if name != "packed"]
    raise ValueError(
      f"--format={needing[0]}: {_WORKDIR.value} is of a float network, which "
      f"has no policy; expected one of {', '.join(others)}."
    )


def print_report(
  network: export_formats.Deployable,
  written: dict[str, pathlib.Path],
  data: run_data.RunData,
) -> None:
  """Measure what was written, and say it."""
  report = export_report.measure(
    network, written, data, batches=_BATCHES.value, repeats=_REPEATS.value
  )
  first = next(iter(written.values()))
  output = first.with_name(f"{first.stem}-report.json")
  picture = export_table.write(report, output)
  print(f"written to {output}, {picture}")
  print(export_table.format_table(report))


def export_pareto() -> None:
  """Write the Pareto curve and its picture."""
  check_run()
  files.check_writable(_OUTPUT.value or f"{_WORKDIR.value}/pareto.json")
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
  picture = pareto_plot.write(curve, output)
  print(pareto_curve.format_table(curve))
  whole = "the whole curve" if curve.complete else "more lie between"
  print(f"{len(curve.points)} points ({whole}) written to {output}, {picture}")


def main(_: list[str]) -> None:
  """Read the run and write what was asked for."""
  process.prepare()
  logging.set_verbosity(logging.INFO)
  std_logging.getLogger("jax").setLevel(std_logging.WARNING)
  try:
    check_flags()
    if _PARETO.value:
      export_pareto()
    else:
      export()
  except (ValueError, OSError) as error:
    logging.error("%s: %s", type(error).__name__, error)
    sys.exit(1)


def parse(arguments: list[str]) -> list[str]:
  """Parse the flags; see `command.parse`."""
  return command.parse(arguments, required=("workdir",))


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
