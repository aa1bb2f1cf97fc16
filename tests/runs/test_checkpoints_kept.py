"""Which checkpoints are kept, and what a full disk leaves."""

import subprocess
import sys

import numpy as np
import pytest

from asga_jax.runs import checkpoints


def _kept(directory, losses, **kwargs):
  """Saves a step for each loss and lists the steps that are left."""
  with checkpoints.Checkpoints(directory, **kwargs) as writer:
    first = (checkpoints.latest_step(directory) or 0) + 1
    for step, loss in enumerate(losses, first):
      writer.save(step, {"w": np.float32(step)}, loss=loss)
  return sorted(int(p.name) for p in directory.iterdir() if p.is_dir())


def test_the_last_and_the_best_are_kept(tmp_path):
  losses = [5.0, 1.0, 4.0, 2.0, None, 3.0, 6.0]
  assert _kept(tmp_path, losses, keep=2, best=2) == [2, 4, 6, 7]
  # What was best before is known to the next process.
  assert _kept(tmp_path, [1.5, 7.0, 8.0], keep=2, best=2) == [2, 8, 9, 10]
  # And one that keeps the last alone removes it.
  assert _kept(tmp_path, [9.0], keep=2) == [10, 11]


def test_numbers_that_cannot_be_are_named(tmp_path):
  for given in ({"keep": 1}, {"best": -1}):
    with pytest.raises(ValueError, match=r"keep is .* expected 2 or more, and"):
      checkpoints.Checkpoints(tmp_path, **given)


FILLS = """
import resource, sys
import numpy as np
from asga_jax.runs import checkpoints
def at(value): return {"w": np.random.default_rng(value).normal(size=100_000)}
with checkpoints.Checkpoints(sys.argv[1]) as writer:
  writer.save(1, at(1))
  writer.wait()
  # As on a full disk, the system refuses what goes beyond.
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, -1))
  try:
    writer.save(2, at(2))
    writer.save(3, at(3))
  except checkpoints.CheckpointError as error:
    print(error)
    raise SystemExit(3)
"""


def test_a_disk_that_fills_is_one_error_and_leaves_the_last_good_one(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", FILLS, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 3, done.stderr[-3000:]
  assert done.stdout.count("\n") == 1
  assert f"a checkpoint cannot be written to {tmp_path}: " in done.stdout
  assert "File too large" in done.stdout
  assert "that of step 1 is whole" in done.stdout
  assert checkpoints.latest_step(tmp_path) == 1
  wanted = np.random.default_rng(1).normal(size=100_000)
  step, found = checkpoints.restore_latest(tmp_path, {"w": np.zeros(100_000)})
  assert step == 1
  np.testing.assert_array_equal(found["w"], wanted)
  # What was half-written is removed, and the run goes on.
  assert _kept(tmp_path, [None]) == [1, 2]
