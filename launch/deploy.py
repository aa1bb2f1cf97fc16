"""From a network to files that are deployed: every step by its own command.

Searches a policy, trains on at it from the search's weights, evaluates, exports
to every format and runs each file; prints each command, and the table of the
files at the end. What has ended is read, not repeated.

python launch/deploy.py --config=configs/mobilenetv2.py --output=runs/deploy
"""

import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import app, flags

from asga_jax.deploy import formats as export_formats
from asga_jax.runs import command
from asga_jax.runs import config as config_lib

_CONFIG = flags.DEFINE_string(
  "config",
  "configs/mobilenetv2.py",
  "A file of configs/, with :ARGUMENT for a variant. Flags --config.KEY are "
  "handed on to the commands that read them.",
)
_OUTPUT = flags.DEFINE_string("output", "runs/deploy", "Where results go.")

FOLDER = pathlib.Path(__file__).parent


def commands(
  config: str, keys: Sequence[str], output: str
) -> dict[str, list[str]]:
  """List the commands by what they do.

  Args:
    config: the file.
    keys: flags of the form --config.KEY=VALUE.
    output: the directory that all results go to.

  Returns:
    In their order, the script of each and its flags.

  Raises:
    ValueError: a key that no command reads.
  """
  command.check_flag_names(keys)
  of_search = _without(keys, config_lib.OF_FINETUNE)
  of_finetune = _without(keys, config_lib.OF_SEARCH)
  searched, trained = f"{output}/search", f"{output}/finetune"
  formats = ["policy", *export_formats.FORMATS]
  return {
    "search": [
      "search.py",
      f"--config={config}",
      *of_search,
      f"--workdir={searched}",
    ],
    "fine-tuning": [
      "finetune.py",
      f"--config={config}",
      *of_finetune,
      f"--policy={searched}/policy.json",
      f"--from={searched}",
      f"--workdir={trained}",
    ],
    "evaluation": ["evaluate.py", f"--workdir={trained}"],
    "export": [
      "export.py",
      f"--workdir={trained}",
      *(f"--format={name}" for name in formats),
      f"--output={output}",
    ],
  }


def _without(keys: Sequence[str], unread: Sequence[str]) -> list[str]:
  """Leave out what a command does not read."""
  beginnings = tuple(f"--config.{name}{end}" for name in unread for end in ".=")
  return [key for key in keys if not key.startswith(beginnings)]


def main(argv: list[str]) -> None:
  """Run the commands one after the other."""
  try:
    planned = commands(_CONFIG.value, argv[1:], _OUTPUT.value)
  except ValueError as error:
    sys.exit(f"{type(error).__name__}: {error}")
  begun = time.monotonic()
  for name, (script, *given) in planned.items():
    seconds = time.monotonic() - begun
    print(f"\n# {name}, {seconds:.0f} s after the start", flush=True)
    print(f"$ {shlex.join(['python', f'launch/{script}', *given])}", flush=True)
    done = subprocess.run([sys.executable, str(FOLDER / script), *given])
    if done.returncode:
      sys.exit(done.returncode)
  print(f"\n{time.monotonic() - begun:.0f} s in all")


def parse(arguments: list[str]) -> list[str]:
  """Parse the flags of this script; keys of the configuration are left."""
  return command.parse(arguments, unread=(), handed_on=True)


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
