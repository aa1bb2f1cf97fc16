import io

import pytest

from asga_jax.training import progress as progress_lib


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize(
  ("seconds", "words"),
  [
    (0, "0 seconds"),
    (-1, "0 seconds"),
    (1.4, "1 second"),
    (59.6, "1 minute"),
    (125, "2 minutes 5 seconds"),
    (3600, "1 hour"),
    (86400 * 2 + 3600 * 5 + 61, "2 days 5 hours"),
  ],
)
def test_duration_in_words(seconds, words):
  assert progress_lib.duration_in_words(seconds) == words


@pytest.fixture
def clock(monkeypatch):
  class Clock:
    now = 100.0

  monkeypatch.setattr(progress_lib.time, "monotonic", lambda: Clock.now)
  return Clock


def test_plain_lines_in_a_log(clock):
  stream = io.StringIO()
  with progress_lib.Progress(
    100, initial=20, label="search", interval=10, stream=stream
  ) as progress:
    clock.now += 50  # the first step compiles
    progress.update(21, {"loss": 2.25})
    assert stream.getvalue() == "search step 21 of 100, loss 2.25\n"
    for step in range(22, 101):
      clock.now += 2
      progress.update(step, {"gap": 0.123456} if step == 30 else None)
  lines = stream.getvalue().splitlines()
  # 79 steps of 2 seconds at a line every 10 seconds, and the last step.
  assert len(lines) == 1 + 15 + 1
  assert lines[1] == (
    "search step 26 of 100, 2 seconds a step, 2 minutes 28 seconds left, "
    "loss 2.25"
  )
  assert lines[-1] == "search step 100 of 100, 2 seconds a step, gap 0.1235"


def test_fast_steps_are_counted_a_second(clock):
  stream = io.StringIO()
  progress = progress_lib.Progress(1000, interval=1, stream=stream)
  for step in range(0, 401, 100):
    progress.update(step)
    clock.now += 0.5
  assert stream.getvalue().splitlines() == [
    "step 200 of 1000, 200 steps a second, 4 seconds left",
    "step 400 of 1000, 200 steps a second, 3 seconds left",
  ]


def test_a_bar_on_a_terminal():
  stream = Terminal()
  with progress_lib.Progress(
    4, initial=1, label="search", stream=stream
  ) as progress:
    for step in range(2, 5):
      progress.update(step, {"loss": 0.5})
  shown = stream.getvalue().split("\r")[-1]
  assert "search: 100%" in shown
  assert "4/4" in shown
  assert "loss=0.5" in shown


def test_a_finished_run_says_nothing():
  stream = io.StringIO()
  with progress_lib.Progress(5, initial=5, stream=stream) as progress:
    progress.update(5)
  assert stream.getvalue() == ""
