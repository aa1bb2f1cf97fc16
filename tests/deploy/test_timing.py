"""Programs timed in turns, by a clock that only they move."""

import time

from asga_jax.deploy import timing


def test_rounds_go_in_turns_and_warm_up_does_not_count(monkeypatch):
  now, order = [0.0], []
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  # Of 'a' the first round, which would move the median, is left out.
  seconds = {"a": [9.0, 1.0, 2.0, 6.0], "b": [0.1, 0.5, 0.5, 0.5]}

  def make(name):
    def run():
      order.append(name)
      now[0] += seconds[name][order.count(name) - 1]

    return run

  found = timing.median_ms([make("a"), make("b")], 3, warm_up=1)
  assert order == ["a", "b"] * 4
  assert [round(value, 6) for value in found] == [2000, 500]
