"""Writes the page of a search or a fine-tuning, or one that compares several.

python launch/report.py --workdir=DIR [--workdir=OTHER ...]
"""

import sys

from absl import app, flags, logging

from asga_jax.runs import command, report

_WORKDIR = flags.DEFINE_multi_string(
  "workdir", [], "A work directory; several are compared."
)
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "Where to; by default report.html in the work directory, or comparison.html "
  "in the first of several.",
)


def main(_: list[str]) -> None:
  """Write the report."""
  try:
    written = report.write_report(_WORKDIR.value, _OUTPUT.value)
  except (ValueError, OSError) as error:
    logging.error("%s: %s", type(error).__name__, error)
    sys.exit(1)
  print(f"written to {written}")


def parse(arguments: list[str]) -> list[str]:
  """Parse the flags; see `command.parse`."""
  return command.parse(arguments, required=("workdir",))


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
