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


def test_runs_before_a_timed_one_do_not_count(monkeypatch):
  now, calls = [0.0], [0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])

  def run():
    # Every third run takes a second less than the two before it.
    now[0] += 3 if calls[0] % 3 < 2 else 2
    calls[0] += 1

  assert timing.times_ms([run], 2, warm_up=0, before=2) == [[2000, 2000]]
  assert calls == [6]
