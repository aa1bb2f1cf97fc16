"""Searches a mixed-precision policy.

python launch/search.py --config=configs/mobilenetv2.py
"""

import multihost
import process
from absl import app, flags
from ml_collections import config_flags

from asga_jax.runs import command, processes, search, summary, workdir
from asga_jax.runs import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file of configs/, with :ARGUMENT for a variant."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where results go; by default runs/<config>-<hash>."
)
flags.adopt_module_key_flags(multihost)
_TENSORBOARD = flags.DEFINE_bool(
  "tensorboard", False, "Write event files to tensorboard/ in the workdir."
)


def main(_: list[str]) -> None:
  """Run the search and print its policy."""
  process.prepare()
  command.start_logging()
  multihost.join()
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  with multihost.errors_told():
    config = config_lib.of_search(_CONFIG.value)
    path = _WORKDIR.value or workdir.default_workdir(name, config)
    finished = search.run_search(config, path, tensorboard=_TENSORBOARD.value)
  if processes.first():
    print(summary.format_search(finished))
    print(
      f"written to {path}: policy.json, report.html, policy.png, search.png"
    )


def parse(arguments: list[str]) -> list[str]:
  """Parse the flags; see `command.parse`."""
  return command.parse(
    arguments, required=("config",), unread=config_lib.OF_FINETUNE
  )


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
