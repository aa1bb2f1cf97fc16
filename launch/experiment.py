"""Runs a grid of experiments, and goes on where it was ended.

python launch/experiment.py --config=configs/experiments/post_training.py
"""

import sys

import process
from absl import app, flags, logging
from ml_collections import config_flags

from asga_jax.evidence import experiment, report
from asga_jax.runs import command
from asga_jax.training import loop

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file of configs/experiments/."
)
_DATA = flags.DEFINE_string(
  "data",
  "",
  "The folder of weights/, imagenet/ and tfds/; by default the one that"
  " ASGA_DATA_DIR lies in.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where cells go; by default runs/experiments/<name>."
)
_RESULTS = flags.DEFINE_string("results", "docs/results", "Where tables go.")
_ONLY = flags.DEFINE_string(
  "only", "", "Compute only the policies whose label has this in it."
)


def main(_: list[str]) -> None:
  """Run the grid and print its table."""
  process.prepare()
  command.start_logging()
  try:
    table = experiment.run_experiment(
      _CONFIG.value,
      root=_DATA.value,
      workdir=_WORKDIR.value,
      results=_RESULTS.value,
      only=_ONLY.value,
    )
  except (ValueError, OSError, loop.DivergedError) as error:
    logging.error("%s: %s", type(error).__name__, error)
    sys.exit(1)
  print(report.format_table(table))


def parse(arguments: list[str]) -> list[str]:
  """Parse the flags; see `command.parse`."""
  return command.parse(arguments, required=("config",))


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
