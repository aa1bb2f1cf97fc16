"""Signals end a process at once, or after the step that is saved."""

import signal
import subprocess
import sys
import textwrap

import pytest

from asga_jax.runs import interrupts

FIRST = """
  import pathlib, sys, time
  from asga_jax.runs import interrupts
  interrupts.install()
  def ready():
    print("ready", flush=True)
"""
# Holds the main thread in one call, as a compiler does.
HELD = """
  import threading
  ready()
  threading.Event().wait(60)
"""
STEPS = """
  with interrupts.steps() as stop:
    ready()
    for step in range(6000):
      time.sleep(0.01)
      if stop():
        pathlib.Path(sys.argv[1]).write_text("saved")
        break
  print("not reached")
"""
# A step that never ends.
STUCK = """
  with interrupts.steps():
    ready()
    time.sleep(60)
"""


def _start(tmp_path, *parts):
  code = "".join(textwrap.dedent(part) for part in (FIRST, *parts))
  process = subprocess.Popen(
    [sys.executable, "-c", code, str(tmp_path / "saved")],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_held_ends_at_once(tmp_path, number):
  process = _start(tmp_path, HELD)
  process.send_signal(number)
  _, told = process.communicate(timeout=10)
  assert process.returncode == 128 + number
  assert f"{number.name}: the run ends; the same command goes on" in told
  assert "Traceback" not in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_steps_are_saved_before_the_end(tmp_path, number):
  process = _start(tmp_path, STEPS)
  process.send_signal(number)
  printed, told = process.communicate(timeout=10)
  assert process.returncode == 128 + number
  assert (tmp_path / "saved").read_text() == "saved"
  assert f"{number.name}: saving this step" in told
  assert "not reached" not in printed
  assert "Traceback" not in told


def test_a_second_signal_does_not_wait(tmp_path):
  process = _start(tmp_path, STUCK)
  process.send_signal(signal.SIGTERM)
  assert "saving this step" in process.stderr.readline()
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=10)
  assert process.returncode == 128 + signal.SIGTERM


def test_a_child_has_signals_of_its_own(tmp_path):
  code = """
  import os, signal
  child = os.fork()
  if not child:
    time.sleep(20)
    os._exit(1)
  time.sleep(1)  # until the child has come to itself
  os.kill(child, signal.SIGTERM)
  _, status = os.waitpid(child, 0)
  pathlib.Path(sys.argv[1]).write_text(str(os.WTERMSIG(status)))
  ready()
  """
  process = _start(tmp_path, code)
  process.communicate(timeout=10)
  assert process.returncode == 0
  assert (tmp_path / "saved").read_text() == str(int(signal.SIGTERM))


def test_a_stream_that_nobody_reads_does_not_hold_the_end(tmp_path):
  full = """
  import os, fcntl
  flags = fcntl.fcntl(2, fcntl.F_GETFL)
  fcntl.fcntl(2, fcntl.F_SETFL, flags | os.O_NONBLOCK)
  try:
    while True:
      os.write(2, b"x" * 1024)
  except BlockingIOError:
    pass
  fcntl.fcntl(2, fcntl.F_SETFL, flags)
  """
  process = _start(tmp_path, full, HELD)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=10) == 128 + signal.SIGTERM


def test_nothing_is_held_back_where_nothing_is_installed():
  with interrupts.steps() as stop:
    assert not stop()


def test_a_signal_to_another_process_ends_the_steps():
  """Of a process that gets none, when the others agree on theirs."""
  said = []

  def agree(own):
    said.append(own)
    return signal.SIGTERM if len(said) > 2 else 0

  with (
    pytest.raises(interrupts.Stopped) as caught,
    interrupts.steps(agree) as stop,
  ):
    assert [stop(), stop(), stop()] == [False, False, True]
  assert caught.value.code == 128 + signal.SIGTERM
  # Once more at the end, where one may have gone on alone.
  assert said == [0, 0, 0, 0]


def test_after_an_error_nobody_is_asked():
  with (
    pytest.raises(ZeroDivisionError),
    interrupts.steps(lambda own: pytest.fail(str(own))),
  ):
    _ = 1 / 0
