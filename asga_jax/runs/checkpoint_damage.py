"""What is wrong with a checkpoint: damage, or another reason."""

import json
import os
import pathlib
from typing import NoReturn

from absl import logging

from asga_jax.runs import processes

# How TensorStore's errors begin where files are not what they were.
_OF_DAMAGE = (
  "DATA_LOSS",
  "FAILED_PRECONDITION",
  "INVALID_ARGUMENT",
  "NOT_FOUND",
  "OUT_OF_RANGE",
)


class CheckpointError(ValueError):
  """Checkpoints that cannot be read, or that belong to another model."""


class DamageError(ValueError):
  """What was read is not what was written."""


def first_line(error: BaseException) -> str:
  """Shorten an error to the line that says what is wrong."""
  return processes.line(error).partition(" See full TensorStore")[0]


def tell(path: pathlib.Path, error: Exception) -> None:
  """Warn of a damaged checkpoint.

  It is damaged if all of its files can be read, and what they hold is wrong.

  Raises:
    CheckpointError: it cannot be read for another reason.
  """
  try:
    for folder, _, names in os.walk(path, onerror=_raise):
      for name in names:
        with open(pathlib.Path(folder, name), "rb") as file:
          while file.read(1 << 24):
            pass
  except OSError as failure:
    error = failure
  else:
    kinds = (DamageError, json.JSONDecodeError, UnicodeError)
    if isinstance(error, (*kinds, FileNotFoundError)) or (
      isinstance(error, ValueError) and str(error).startswith(_OF_DAMAGE)
    ):
      logging.warning(
        "The checkpoint of step %s is damaged (%s): %s",
        path.name,
        path,
        first_line(error),
      )
      return
  raise CheckpointError(
    f"the checkpoint {path} cannot be read, which does not prove it damaged: "
    f"{type(error).__name__}: {first_line(error)}; mend that and give the "
    "same command again, or move the checkpoint away to go on from the one "
    "before it"
  ) from error


def _raise(error: OSError) -> NoReturn:
  raise error
