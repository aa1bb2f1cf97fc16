"""Measures a latency table of a network on the CPU that it runs on.

python launch/latency.py --config=configs/resnet8.py --output=table.json

The table serves `launch/search.py --config.latency_table=table.json` with a
budget such as --config.budget=latency=3.1ms. It has the bits of the
configuration's candidates and float; what was run, and which bit-widths cost
the same here, is printed and kept in the table.
"""

import sys

import process
from absl import app, flags, logging
from ml_collections import config_flags

from asga_jax.runs import command, latency
from asga_jax.runs import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file of configs/, with :ARGUMENT for a variant."
)
_OUTPUT = flags.DEFINE_string(
  "output",
  "",
  "Where to: a .json file, or .csv for the entries alone.",
)
_BATCH = flags.DEFINE_integer("batch", 1, "Images that are run at once.")
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of the runtime.")
_REPEATS = flags.DEFINE_integer(
  "repeats", 200, "Runs of each layer, of which the median counts."
)


def main(_: list[str]) -> None:
  """Measure the table and write it."""
  process.prepare()
  command.start_logging()
  try:
    table = latency.measure_latency(
      _CONFIG.value,
      _OUTPUT.value,
      batch=_BATCH.value,
      threads=_THREADS.value,
      repeats=_REPEATS.value,
    )
  except ModuleNotFoundError as error:
    sys.exit(f"{error}; install what is needed: pip install 'asga-jax[onnx]'")
  except (ValueError, OSError) as error:
    logging.error("%s: %s", type(error).__name__, error)
    sys.exit(1)
  print(latency.format_totals(table))
  print(f"written to {_OUTPUT.value}")


def parse(arguments: list[str]) -> list[str]:
  """Parse the flags; see `command.parse`."""
  return command.parse(
    arguments,
    required=("config", "output"),
    unread=config_lib.OF_FINETUNE,
  )


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
