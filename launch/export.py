"""Writes what a finished search found, for its budget or another.

python launch/export.py --workdir=DIR --format=policy --output=policy.json
"""

import dataclasses
import logging as std_logging
import sys

from absl import app, flags, logging

from asga_jax import policy as policy_lib
from asga_jax import policy_table, search_run
from asga_jax import result as result_lib
from asga_jax.cost import latency_table

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The work directory of a search.", required=True
)
_FORMAT = flags.DEFINE_enum("format", "policy", ["policy"], "What to write.")
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "Where to; by default policy.json in the work directory, or "
  "policy-BUDGET-SCORE.json where these are given.",
)
_BUDGET = flags.DEFINE_string(
  "budget", None, "Another budget, from the same scores, such as bops=3bit."
)
_LATENCY_TABLE = flags.DEFINE_string(
  "latency_table",
  None,
  "A table for latency budgets, by default the one of the search.",
)
_SCORE = flags.DEFINE_enum(
  "score", None, result_lib.SCORES, "Another score to choose by."
)


def main(argv: list[str]) -> None:
  """Restore the search and write its policy."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {argv[1:]}")
  logging.set_verbosity(logging.INFO)
  std_logging.getLogger("jax").setLevel(std_logging.WARNING)
  try:
    table = _LATENCY_TABLE.value
    latency = latency_table.load_latency(table) if table else None
    found = search_run.restore(_WORKDIR.value)
    if latency:
      found = dataclasses.replace(found, costs=(latency,))
    policy = result_lib.allocate(
      found, budget=_BUDGET.value, score=_SCORE.value
    )
    chosen = (_BUDGET.value and policy.budget, _SCORE.value)
    name = "-".join(["policy", *filter(None, chosen)])
    output = _OUTPUT.value or f"{_WORKDIR.value}/{name}.json"
    policy_lib.save(policy, output)
  except (ValueError, OSError) as error:
    logging.error("%s: %s", type(error).__name__, error)
    sys.exit(1)
  print(policy_table.format_table(policy))
  print(f"written to {output}")


if __name__ == "__main__":
  app.run(main)
