"""Writes the page of a search or a fine-tuning, or one that compares several.

python launch/report.py --workdir=DIR [--workdir=OTHER ...]
"""

import sys

from absl import app, flags, logging

from asga_jax.runs import report

_WORKDIR = flags.DEFINE_multi_string(
  "workdir", None, "A work directory; several are compared.", required=True
)
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "Where to; by default report.html in the work directory, or comparison.html "
  "in the first of several.",
)


def main(argv: list[str]) -> None:
  """Write the report."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {argv[1:]}")
  try:
    written = report.write_report(_WORKDIR.value, _OUTPUT.value)
  except (ValueError, OSError) as error:
    logging.error("%s: %s", type(error).__name__, error)
    sys.exit(1)
  print(f"written to {written}")


if __name__ == "__main__":
  app.run(main)
