"""What a command sets for its process, and that every one does."""

import gc
import pathlib
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SHOW = """
import gc
import jax, process
process.prepare()
print(gc.get_threshold()[0], gc.get_freeze_count(),
      jax.config.jax_compilation_cache_dir)
"""


def test_it_sets_the_collector_and_the_cache(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", SHOW],
    cwd=LAUNCH,
    env={"PATH": "", "XDG_CACHE_HOME": str(tmp_path)},
    capture_output=True,
    text=True,
    check=True,
  )
  threshold, frozen, cache = done.stdout.split()
  assert int(threshold) > 100 * gc.get_threshold()[0]
  assert int(frozen) > 10_000
  assert pathlib.Path(cache).is_relative_to(tmp_path)


@pytest.mark.parametrize(
  "command",
  [
    "search",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ("export", "finetune", "evaluate", "latency")
    ),
  ],
)
def test_a_command_that_compiles_prepares_its_process_first(command, tmp_path):
  # A run that cannot start: the first thing that main reads is not there.
  show = (
    "import sys, process\n"
    "from absl import flags\n"
    "def prepare(): raise SystemExit('prepared')\n"
    "process.prepare = prepare\n"
    f"import {command}\n"
    "flags.FLAGS(['it', '--workdir=nowhere', '--output=nowhere'], True)\n"
    f"{command}.main(['it'])\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", show],
    cwd=LAUNCH,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stderr.strip().splitlines()[-1] == "prepared"
