"""Trains a network at its policy, or in float.

python launch/finetune.py --config=configs/resnet8.py --policy=policy.json
"""

import multihost
import process
from absl import app, flags
from ml_collections import config_flags

from asga_jax.runs import command, finetune, processes, summary, workdir
from asga_jax.runs import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file of configs/, with :ARGUMENT for a variant."
)
_POLICY = flags.DEFINE_string(
  "policy",
  None,
  "A policy file; 'float' for the float network, the default; '4bit' for "
  "uniform bits. Short for --config.finetune.policy.",
)
_FROM = flags.DEFINE_string(
  "from",
  None,
  "The work directory of a search or a fine-tuning to start from. Short for "
  "--config.finetune.start_from.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where results go; by default runs/<config>-<hash>."
)
flags.adopt_module_key_flags(multihost)
_TENSORBOARD = flags.DEFINE_bool(
  "tensorboard", False, "Write event files to tensorboard/ in the workdir."
)


def main(_: list[str]) -> None:
  """Run the training and print its result."""
  process.prepare()
  command.start_logging()
  multihost.join()
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  with multihost.errors_told():
    config = config_lib.of_finetune(_CONFIG.value)
    if _POLICY.value is not None:
      config.finetune.policy = _POLICY.value
    if _FROM.value is not None:
      config.finetune.start_from = _FROM.value
    path = _WORKDIR.value or workdir.default_workdir(name, config)
    finished = finetune.run_finetuning(
      config, path, tensorboard=_TENSORBOARD.value
    )
  if processes.first():
    print(summary.format_finetuning(finished))
    print(f"written to {path}: weights.safetensors, report.html, finetune.png")


def parse(arguments: list[str]) -> list[str]:
  """Parse the flags; see `command.parse`."""
  return command.parse(
    arguments, required=("config",), unread=config_lib.OF_SEARCH
  )


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
