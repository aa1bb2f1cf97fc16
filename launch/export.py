"""Writes what a finished run found or trained, and says what it is worth.

python launch/export.py --workdir=DIR --format=policy --output=policy.json
python launch/export.py --workdir=DIR --format=onnx --output=network.onnx
python launch/export.py --workdir=DIR --format=onnx --format=packed
python launch/export.py --workdir=DIR --pareto --cost=size
"""

import pathlib
import sys

import process
from absl import app, flags, logging

from asga_jax.deploy import formats as export_formats
from asga_jax.runs import command, export, measure
from asga_jax.training import search_settings

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
  "network.orbax; with --pareto pareto-bops.json, or "
  "pareto-COST-BUDGET-SCORE.json, and beside it the picture, .png.",
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
  measure.REPEATS,
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
  "score",
  None,
  search_settings.SCORES,
  "Of a search: another score to choose by.",
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
_OF_REPORT = (_BATCHES, _REPEATS)
_OF_NETWORK = (_AVERAGED, _REPORT, *_OF_REPORT)


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
  if set(_FORMAT.value) == {"policy"}:
    known = ", ".join(export_formats.FORMATS)
    refuse("a network", f"--format with it, one of {known}.", *_OF_NETWORK)
  if not _REPORT.value:
    refuse("the report", "no --report=false beside it.", *_OF_REPORT)
  for flag in _OF_REPORT:
    if flag.value < 0:
      raise ValueError(f"--{flag.name}={flag.value}; expected at least 0.")


def main(_: list[str]) -> None:
  """Read the run and write what was asked for."""
  process.prepare()
  command.start_logging()
  try:
    check_flags()
    if _PARETO.value:
      written = export.export_curve(
        _WORKDIR.value,
        output=_OUTPUT.value,
        cost=_COST.value,
        points=_POINTS.value,
        budget=_BUDGET.value,
        score=_SCORE.value,
        latency_table=_LATENCY_TABLE.value,
      )
      print(written)
      return
    for lines in export.export_run(
      _WORKDIR.value,
      formats=_FORMAT.value,
      output=_OUTPUT.value,
      averaged=_AVERAGED.value,
      budget=_BUDGET.value,
      score=_SCORE.value,
      latency_table=_LATENCY_TABLE.value,
      report=_REPORT.value,
      batches=_BATCHES.value,
      repeats=_REPEATS.value,
    ):
      print(lines, flush=True)
  except (ValueError, OSError) as error:
    logging.error("%s: %s", type(error).__name__, error)
    sys.exit(1)


def parse(arguments: list[str]) -> list[str]:
  """Parse the flags; see `command.parse`."""
  return command.parse(arguments, required=("workdir",))


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
