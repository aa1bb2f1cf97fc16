import io
import json
import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from asga_jax.runs import metrics as metrics_log


class Terminal(io.StringIO):
  def isatty(self):
    return True


def write(path, steps, resume_step=None):
  with metrics_log.MetricsWriter(path, resume_step=resume_step) as writer:
    for step in steps:
      writer.write([{"loss": step / 8, "step": step}])


def steps_of(path):
  return [record["step"] for record in metrics_log.read_metrics(path)]


def test_lines_are_json_with_step_first(tmp_path):
  path = tmp_path / "metrics.jsonl"
  values = {
    "loss": jnp.float32(0.25),
    "gap": np.float32("nan"),
    "radius": math.inf,
    "half": jnp.bfloat16(1.5),
    "count": np.int64(3),
    "name": "a",
    "flag": True,
    "step": jnp.int32(4),
  }
  with metrics_log.MetricsWriter(path) as writer:
    writer.write([values])
    # Already on disk, before the file is closed.
    text = path.read_text()

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  record = json.loads(text, parse_constant=refuse)
  assert next(iter(record)) == "step"
  assert record == {
    "step": 4,
    "loss": 0.25,
    "gap": None,
    "radius": None,
    "half": 1.5,
    "count": 3,
    "name": "a",
    "flag": True,
  }
  assert metrics_log.read_metrics(path) == [record]


def test_resume_gives_each_step_once(tmp_path):
  whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
  write(whole, range(1, 21))
  write(cut, range(1, 14))
  with cut.open("a") as file:
    file.write('{"step": 14, "lo')
  write(cut, range(11, 18), resume_step=10)
  write(cut, range(18, 21), resume_step=17)
  assert cut.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
  ("resume_step", "kept"),
  [(None, []), (0, [0]), (2, [0, 1, 2]), (9, [0, 1, 2])],
)
def test_what_a_resumed_run_keeps(tmp_path, resume_step, kept):
  path = tmp_path / "metrics.jsonl"
  write(path, range(3))
  write(path, [7], resume_step)
  assert steps_of(path) == [*kept, 7]


def test_half_a_last_line_is_passed_over(tmp_path):
  path = tmp_path / "metrics.jsonl"
  write(path, range(12, 15))
  text = path.read_bytes()
  second = text.index(b"\n") + 1
  third = text.index(b"\n", second) + 1
  for end in range(len(text) + 1):
    path.write_bytes(text[:end])
    expected = [(0, 12), (second, 13), (third, 14)]
    ends = [second, third, len(text)]
    assert steps_of(path) == [
      step
      for (_, step), stop in zip(expected, ends, strict=True)
      if end >= stop
    ]


def test_damage_elsewhere_is_an_error_that_names_the_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  for line in ("\0\0\0", '{"step": 2, "l', "[3]", '{"loss": 1}', ""):
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    before = path.read_bytes()
    with pytest.raises(metrics_log.MetricsError, match="line 2 of"):
      metrics_log.read_metrics(path)
    with pytest.raises(metrics_log.MetricsError, match="line 2 of"):
      metrics_log.MetricsWriter(path, resume_step=5)
    assert path.read_bytes() == before


def test_a_record_without_step_is_refused(tmp_path):
  with (
    metrics_log.MetricsWriter(tmp_path / "m") as writer,
    pytest.raises(ValueError, match="no step"),
  ):
    writer.write([{"loss": 1.0}])


def test_buffer_fetches_once_for_all_steps(monkeypatch):
  fetches = []
  device_get = jax.device_get
  monkeypatch.setattr(
    jax, "device_get", lambda tree: fetches.append(1) or device_get(tree)
  )
  buffer = metrics_log.MetricsBuffer()
  for step in range(5, 9):
    with jax.transfer_guard_device_to_host("disallow"):
      buffer.add(step, {"loss": jnp.float32(step) / 4, "rate": 0.5})
  assert not fetches
  records = buffer.flush()
  assert len(fetches) == 1
  assert records == [
    {"step": s, "loss": s / 4, "rate": 0.5} for s in range(5, 9)
  ]
  assert not isinstance(records[0]["loss"], jax.Array)
  assert buffer.flush() == []


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
  assert metrics_log.duration_in_words(seconds) == words


@pytest.fixture
def clock(monkeypatch):
  class Clock:
    now = 100.0

  monkeypatch.setattr(metrics_log.time, "monotonic", lambda: Clock.now)
  return Clock


def test_plain_lines_in_a_log(clock):
  stream = io.StringIO()
  with metrics_log.Progress(
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
  progress = metrics_log.Progress(1000, interval=1, stream=stream)
  for step in range(0, 401, 100):
    progress.update(step)
    clock.now += 0.5
  assert stream.getvalue().splitlines() == [
    "step 200 of 1000, 200 steps a second, 4 seconds left",
    "step 400 of 1000, 200 steps a second, 3 seconds left",
  ]


def test_a_bar_on_a_terminal():
  stream = Terminal()
  with metrics_log.Progress(
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
  with metrics_log.Progress(5, initial=5, stream=stream) as progress:
    progress.update(5)
  assert stream.getvalue() == ""
