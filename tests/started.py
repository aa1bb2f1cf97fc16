"""Commands that are started as a user starts them, on a small run."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = (
  "--config=configs/resnet8.py",
  "--config.data.name=digits",
  "--config.data.image_size=8",
  "--config.data.pad=1",
  "--config.batch_size=16",
  "--config.eval_batch_size=50",
  "--config.report_batches=1",
  "--config.batch_norm_batches=1",
  "--config.checkpoint_every=3",
  "--config.bits=(2,4)",
  "--config.pretrain.steps=0",
)


def environment_with(folder):
  """Give the environment of a command, with one cache of programs."""
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(folder),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def free_port():
  """Give the number of a port at which nobody listens."""
  with socket.socket() as taken:
    taken.bind(("localhost", 0))
    return taken.getsockname()[1]


def python(environment, *arguments):
  """Start Python in the project's folder; all that it prints is one text."""
  return subprocess.Popen(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def with_cache(folder):
  """Make a function that starts a script, with one cache of programs."""
  environment = environment_with(folder)

  def start(script, *arguments):
    return python(environment, f"launch/{script}.py", *arguments)

  return start


def output(process, code=0):
  """Wait for a command and give what it printed."""
  told, _ = process.communicate(timeout=600)
  assert process.returncode == code, told
  return told
