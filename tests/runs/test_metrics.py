import json
import math

import numpy as np
import pytest
from jax import numpy as jnp

from asga_jax.runs import metrics as metrics_log


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
