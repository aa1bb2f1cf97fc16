"""Evaluates the network of a search or a fine-tuning on any split.

python launch/evaluate.py --workdir=DIR [--split=test] [--compare=float]
"""

import sys

import process
from absl import app, flags, logging

from asga_jax.runs import command, evaluate

_WORKDIR = flags.DEFINE_string(
  "workdir",
  "",
  "The work directory of a search or a fine-tuning.",
)
_SPLIT = flags.DEFINE_string(
  "split", "test", "'test', 'train' or, of a bilevel search, 'heldout'."
)
_COMPARE = flags.DEFINE_multi_string(
  "compare",
  [],
  "'float' for the same weights without quantization, another work directory, "
  "or a .safetensors file of float weights.",
)


def main(_: list[str]) -> None:
  """Evaluate and print a table."""
  process.prepare()
  command.start_logging()
  try:
    report = evaluate.evaluate_run(
      _WORKDIR.value, split=_SPLIT.value, compare=_COMPARE.value
    )
  except (ValueError, OSError) as error:
    logging.error("%s: %s", type(error).__name__, error)
    sys.exit(1)
  print(evaluate.format_evaluation(report))
  names = (f"evaluation-{report['split']}.json", f"confusion-{report['split']}")
  print(f"written to {_WORKDIR.value}: {names[0]}, {names[1]}.png")


def parse(arguments: list[str]) -> list[str]:
  """Parse the flags; see `command.parse`."""
  return command.parse(arguments, required=("workdir",))


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
