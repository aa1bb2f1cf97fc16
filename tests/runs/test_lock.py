"""Two runs in one work directory: the second is told who is there."""

import json
import os
import signal
import socket
import subprocess
import sys
from unittest import mock

import jax
import pytest

from asga_jax.runs import finetune as finetune_run
from asga_jax.runs import lock, workdir
from asga_jax.runs import search as search_run

HOLD = """
import sys
from asga_jax.runs import lock
with lock.hold(sys.argv[1]):
  print("held", flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path):
  """A function that starts a process that holds a directory."""
  started = []

  def run(path):
    process = subprocess.Popen(
      [sys.executable, "-c", HOLD, str(path)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    started.append(process)
    assert process.stdout.readline() == "held\n"
    return process

  yield run
  for process in started:
    process.kill()
    process.communicate()


def test_the_second_is_told_who_holds_it_until_that_is_killed(start, tmp_path):
  path = tmp_path / "run"
  process = start(path)
  named = f"process {process.pid} on {socket.gethostname()}, since 2"
  with pytest.raises(workdir.WorkdirError, match=named), lock.hold(path):
    pass
  process.send_signal(signal.SIGKILL)
  process.wait()
  # What the killed one left does not count.
  assert json.loads((path / lock.NAME).read_text())["process"] == process.pid
  with lock.hold(path):
    holder = json.loads((path / lock.NAME).read_text())
    assert holder["process"] == os.getpid()
    (path / "kept").touch()
    with pytest.raises(workdir.WorkdirError), lock.hold(path):
      pass
  assert [file.name for file in path.iterdir()] == ["kept"]


@pytest.mark.usefixtures("tiny_model")
@pytest.mark.parametrize(
  "run", [search_run.run_search, finetune_run.run_finetuning]
)
def test_a_run_ends_at_once_where_another_is_running(
  run, start, tiny_config, tmp_path, contents
):
  path = tmp_path / "run"
  process = start(path)
  before = contents(tmp_path)
  with (
    mock.patch.object(jax.stages.Traced, "lower", side_effect=AssertionError),
    pytest.raises(workdir.WorkdirError, match=f"process {process.pid} "),
  ):
    run(tiny_config, path)
  assert contents(tmp_path) == before


def test_what_was_made_for_the_lock_alone_goes_with_it(tmp_path):
  with pytest.raises(KeyError), lock.hold(tmp_path / "runs" / "a"):
    raise KeyError
  assert list(tmp_path.iterdir()) == []


def test_who_opened_the_file_of_one_that_ended_opens_it_again(tmp_path):
  flock, ended = lock.fcntl.flock, []

  def end_first(file, how):
    if not ended:
      ended.append((tmp_path / lock.NAME).unlink())
    flock(file, how)

  with mock.patch.object(lock.fcntl, "flock", end_first), lock.hold(tmp_path):
    assert (tmp_path / lock.NAME).exists()
    with pytest.raises(workdir.WorkdirError), lock.hold(tmp_path):
      pass


def test_only_the_first_process_of_a_run_holds_it(tmp_path):
  with (
    lock.hold(tmp_path),
    mock.patch.object(jax, "process_index", return_value=1),
    lock.hold(tmp_path),
  ):
    assert (tmp_path / lock.NAME).exists()


def test_a_file_system_without_locks_is_told(tmp_path, caplog):
  error = OSError(38, "Function not implemented")
  with (
    mock.patch.object(lock.fcntl, "flock", side_effect=error),
    caplog.at_level("WARNING", logger="absl"),
    lock.hold(tmp_path),
  ):
    assert "cannot be locked (Function not implemented)" in caplog.text
