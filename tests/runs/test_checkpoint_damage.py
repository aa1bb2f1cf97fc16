"""Checkpoints that are damaged, or that cannot be read for another reason."""

import errno
import os
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from absl import logging
from jax import numpy as jnp
from orbax import checkpoint as ocp

from asga_jax.runs import checkpoints

# Orbax leaves an event loop behind where reading a damaged array fails.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def at(value):
  return {"w": jnp.full((64, 64), value, jnp.float32), "n": jnp.int32(value)}


def save_all(directory, states):
  with checkpoints.Checkpoints(directory) as writer:
    for step, state in states.items():
      writer.save(step, state)


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture
def warned(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, "warning", lambda m, *a: lines.append(m % a))
  return lines


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def flip(path):
  contents = bytearray(path.read_bytes())
  contents[len(contents) // 2] ^= 0xFF
  path.write_bytes(bytes(contents))


@pytest.mark.parametrize("harm", [truncate, flip, pathlib.Path.unlink])
def test_harm_to_any_file_is_noticed_or_harmless(tmp_path, warned, harm):
  good = {1: at(1), 2: at(2)}
  save_all(tmp_path / "good", good)
  files = [p for p in (tmp_path / "good/2").rglob("*") if p.is_file()]
  fallbacks = 0
  for number, file in enumerate(files):
    copy = tmp_path / f"copy{number}"
    shutil.copytree(tmp_path / "good", copy)
    harm(copy / file.relative_to(tmp_path / "good"))
    step, restored = checkpoints.restore_latest(copy, at(0))
    assert_same(restored, good[step])
    assert bool(warned) == (step == 1)
    fallbacks += step == 1
    warned.clear()
  # At least the index and the arrays themselves matter.
  assert fallbacks >= 2


def test_damaged_checkpoints_are_set_aside_where_that_is_asked_for(
  tmp_path, warned, contents
):
  save_all(tmp_path, {10: at(1), 20: at(2), 30: at(3)})
  for number in (1, 2):
    for file in (tmp_path / "30/state").rglob("*"):
      if file.is_file():
        truncate(file)
    damaged = contents(tmp_path / "30")
    for set_aside in (False, True):
      before = contents(tmp_path)
      warned.clear()
      step, restored = checkpoints.restore_latest(
        tmp_path, at(0), set_aside=set_aside
      )
      assert step == 20
      assert_same(restored, at(2))
      assert "step 30" in warned[0]
      assert str(tmp_path / "30") in warned[0]
      assert (contents(tmp_path) == before) != set_aside
    name = "30.damaged" if number == 1 else "30.damaged-2"
    assert name in warned[1]
    assert contents(tmp_path / name) == damaged
    save_all(tmp_path, {30: at(33)})
    step, restored = checkpoints.restore_latest(tmp_path, at(0))
    assert step == 30
    assert_same(restored, at(33))


def test_what_cannot_be_read_is_not_taken_for_damaged(
  tmp_path, warned, contents
):
  good = {1: at(1), 2: at(2)}
  save_all(tmp_path / "good", good)
  files = [p for p in (tmp_path / "good/2").rglob("*") if p.is_file()]
  refused = 0
  for number, file in enumerate(files):
    copy = tmp_path / f"copy{number}"
    shutil.copytree(tmp_path / "good", copy)
    # The system cannot open it, whoever asks.
    unreadable = copy / file.relative_to(tmp_path / "good")
    unreadable.unlink()
    unreadable.symlink_to(unreadable)
    before = contents(copy)
    told = ""
    try:
      step, restored = checkpoints.restore_latest(copy, at(0), set_aside=True)
    except checkpoints.CheckpointError as error:
      told = str(error)
    if told:
      assert "does not prove it damaged: OSError" in told
      assert unreadable.name in told
      refused += 1
    else:
      assert step == 2
      assert_same(restored, at(2))
    assert contents(copy) == before
  assert not warned
  assert refused >= 2


@pytest.mark.parametrize(
  "error",
  [
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.ENOSPC, "No space left on device"),
    MemoryError("of the host"),
    RuntimeError("RESOURCE_EXHAUSTED: of the device"),
    ValueError("PERMISSION_DENIED: Error opening driver"),
  ],
)
def test_an_error_that_is_not_of_the_files_moves_none(
  tmp_path, warned, contents, monkeypatch, error
):
  save_all(tmp_path, {1: at(1), 2: at(2)})
  before = contents(tmp_path)

  def fail(*_, **__):
    raise error

  for reader in (ocp.StandardCheckpointer, ocp.Checkpointer):
    monkeypatch.setattr(reader, "restore", fail)
    with pytest.raises(checkpoints.CheckpointError, match="/2 cannot be read"):
      checkpoints.restore_latest(tmp_path, at(0), set_aside=True)
  with pytest.raises(checkpoints.CheckpointError, match="/2 cannot be read"):
    checkpoints.latest_metadata(tmp_path)
  assert contents(tmp_path) == before
  assert not warned


def test_a_step_before_the_last_is_not_saved(tmp_path):
  save_all(tmp_path, {3: at(3)})
  for step in (2, 3):
    with pytest.raises(ValueError, match=f"step is {step}; expected one after"):
      save_all(tmp_path, {step: at(0)})
  found, restored = checkpoints.restore_latest(tmp_path, at(0))
  assert found == 3
  assert_same(restored, at(3))


def test_half_written_directories_are_passed_over(tmp_path, warned):
  save_all(tmp_path, {10: at(1)})
  (tmp_path / "20").mkdir()
  (tmp_path / "30.orbax-checkpoint-tmp").mkdir()
  assert checkpoints.restore_latest(tmp_path, at(0))[0] == 10
  assert len(warned) == 1
  checkpoints.Checkpoints(tmp_path).close()
  assert not (tmp_path / "30.orbax-checkpoint-tmp").exists()


def test_all_damaged_is_an_error(tmp_path, warned):
  save_all(tmp_path, {1: at(1), 2: at(2)})
  for step in "12":
    shutil.rmtree(tmp_path / step / "state/d")
  with pytest.raises(
    checkpoints.CheckpointError, match=f"all 2 .*{re.escape(str(tmp_path))}"
  ):
    checkpoints.restore_latest(tmp_path, at(0))
  assert len(warned) == 2


def test_a_changed_byte_of_weights_is_found_by_our_checksum_alone(
  tmp_path, warned
):
  """Why there are checksums: TensorStore reads other weights without a word."""
  rng = np.random.default_rng(0)
  state = {"w": rng.normal(size=(64, 64)).astype(np.float32)}
  save_all(tmp_path, {1: state, 2: state})
  files = (p for p in (tmp_path / "2/state").rglob("*") if p.is_file())
  flip(max(files, key=lambda path: path.stat().st_size))
  with ocp.StandardCheckpointer() as reader:
    (read,) = reader.restore(tmp_path / "2/state").values()
  assert (np.asarray(read) != state["w"]).any()
  assert checkpoints.restore_latest(tmp_path, state)[0] == 1
  assert "the checksum of state['w'] is wrong" in warned[0]
