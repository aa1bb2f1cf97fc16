"""Runs a script of launch/ on the tiny network: python tiny_command.py NAME."""

import pathlib
import runpy
import sys

TESTS = pathlib.Path(__file__).parents[1]
LAUNCH = TESTS.parent / "launch"
sys.path[:0] = [str(LAUNCH), str(TESTS), str(TESTS.parent)]

from conftest import TinyNetwork  # noqa: E402

from asga_jax import models  # noqa: E402


def tiny(num_classes, *, stem, rngs, conv_general_dilated=None):
  """Make it as the networks of models are made."""
  del stem, conv_general_dilated
  return TinyNetwork(num_classes, 3, rngs=rngs)


if __name__ == "__main__":
  models.CONSTRUCTORS["tiny"] = tiny
  _, name, *arguments = sys.argv
  sys.argv = [str(LAUNCH / f"{name}.py"), *arguments]
  runpy.run_path(sys.argv[0], run_name="__main__")
