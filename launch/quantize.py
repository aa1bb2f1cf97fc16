"""Quantizes a trained network without training, in minutes.

python launch/quantize.py --config=configs/efficientnet_lite0.py:imagenet
  --config.weights.path=FILE --images=FOLDER --config.budget=bops=4bit
"""

import sys

import process
from absl import app, flags, logging
from ml_collections import config_flags

from asga_jax.runs import (
  command,
  quantize,
  quantize_config,
  quantize_summary,
  workdir,
)

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file of configs/, with :ARGUMENT for a variant."
)
_IMAGES = flags.DEFINE_string(
  "images",
  None,
  "A folder of images, or a CSV file with the column path; they need no labels."
  " By default training images of config.data. Short for"
  " --config.post_training.source.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where results go; by default runs/<config>-<hash>."
)


def main(_: list[str]) -> None:
  """Run the quantization and print its result."""
  process.prepare()
  command.start_logging()
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  try:
    config = quantize_config.of_quantize(_CONFIG.value)
    if _IMAGES.value is not None:
      config.post_training.source = _IMAGES.value
    path = _WORKDIR.value or workdir.default_workdir(name, config)
    finished = quantize.run_quantization(config, path)
  except (ValueError, OSError) as error:
    logging.error("%s: %s", type(error).__name__, error)
    sys.exit(1)
  print(quantize_summary.format_quantization(finished))
  print(f"written to {path}: policy.json, report.html, network.onnx")


def parse(arguments: list[str]) -> list[str]:
  """Parse the flags; see `command.parse`."""
  return command.parse(
    arguments, required=("config",), unread=quantize_config.UNREAD
  )


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
