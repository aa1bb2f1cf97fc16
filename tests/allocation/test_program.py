import types

import numpy as np
import pytest

from asga_jax import policy as policy_lib
from asga_jax.allocation import program as pair_program
from asga_jax.allocation import solver as pair_solver
from asga_jax.cost import costs as costs_lib


def make_program(count=3, group=""):
  network = costs_lib.NetworkStats(
    tuple(
      costs_lib.LayerStats(str(i), 10**9 + 7 * i, 100) for i in range(count)
    ),
    float_parameters=1,
  )
  choice = policy_lib.LayerChoice(
    (2, 4), (2, 3), searched=True, activation_group=group
  )
  choices = dict.fromkeys(network.paths, choice)
  return pair_program.build(network, choices, [costs_lib.BOPS, costs_lib.SIZE])


def test_variables_hold_costs_and_bits():
  program = make_program()
  assert program.size == 12
  picks = (0, 5, 11)  # 2/2, 2/3, 4/3
  assert pair_program.bits(program, picks) == {
    "0": (2, 2),
    "1": (2, 3),
    "2": (4, 3),
  }
  bops = 4 * 10**9 + 6 * (10**9 + 7) + 12 * (10**9 + 14)
  assert pair_program.total(program, picks, "bops") == bops
  assert program.rows["bops"][list(picks)].sum() == bops
  assert pair_program.total(program, picks, "size") == 832


def test_without_windows_each_layer_takes_its_best():
  program = make_program()
  scores = np.array([0, 1, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0])
  assert pair_solver.solve(program, scores, {}) == (1, 6, 8)


def test_a_tied_group_agrees():
  program = make_program(group="all")
  # Input bits 2 would win in layers 0 and 1, input bits 3 by more in layer 2.
  scores = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 5])
  picks = pair_solver.solve(program, scores, {})
  bits = pair_program.bits(program, picks)
  assert {activation for _, activation in bits.values()} == {3}
  assert bits["2"] == (4, 3)


def test_costs_within_the_tolerance_of_the_solver_are_excluded():
  program = make_program()
  scores = np.zeros(12)
  scores[[3, 7, 11]] = 1.0
  top = pair_program.total(program, (3, 7, 11), "bops")
  # One BOP in 36 thousand millions: the solver cannot tell these.
  for high, expected in ((top, True), (top - 1, False)):
    picks = pair_solver.solve(program, scores, {"bops": (0, high)})
    assert (picks == (3, 7, 11)) == expected
    assert pair_program.total(program, picks, "bops") <= high
  only = {"bops": (top - 10, top - 1)}
  assert pair_solver.solve(program, scores, only) is None
  assert pair_solver.solve(program, scores, {"bops": (top, top)}) == (3, 7, 11)


def test_windows_out_of_reach():
  program = make_program()
  assert pair_solver.solve(program, np.zeros(12), {"bops": (0, 1)}) is None
  assert pair_solver.solve(program, np.zeros(12), {"size": (0, 0)}) is None


def test_a_solver_that_fails_is_an_error_not_a_policy(monkeypatch):
  failed = types.SimpleNamespace(status=4, success=False, message="broken")
  monkeypatch.setattr(
    pair_solver.optimize, "milp", lambda *args, **kwargs: failed
  )
  with pytest.raises(RuntimeError, match="broken"):
    pair_solver.solve(make_program(), np.zeros(12), {})


def test_a_program_on_which_presolve_fails_is_solved():
  # HiGHS 1.12 ends in a "Solve error" on this one with presolve.
  tenths = (
    (16, 28, 40, 52),
    (16, 28, 40, 52),
    (28, 64, 52, 88),
    (20, 36, 44, 60),
  )
  network = costs_lib.NetworkStats(
    tuple(costs_lib.LayerStats(str(i), 1, 1) for i in range(4)), 0
  )
  choices = {
    path: policy_lib.LayerChoice(
      (2, 6),
      (2, 6),
      searched=True,
      weight_group="" if path == "1" else "w",
    )
    for path in network.paths
  }
  cost = costs_lib.Cost(
    "latency",
    lambda layer, bw, ba: (
      tenths[int(layer.path)][2 * (bw == 6) + (ba == 6)] / 10
    ),
  )
  program = pair_program.build(network, choices, [cost])
  scores = np.array(
    [
      -1000.0,
      -209.20482789759933,
      -790.7951721024008,
      0.0,
      0.0,
      -205.3715172771274,
      -224.97450497903537,
      -430.3460222561628,
      -997.0122349753233,
      0.0,
      -997.0122349753233,
      0.0,
      0.0,
      -553.0269000850577,
      0.0,
      -553.0269000850577,
    ]
  )
  # From 8.0 up in steps of 1.2, 1.6 and more: none lies in 9.8 to 10.0.
  assert pair_solver.solve(program, scores, {"latency": (9.8, 10.0)}) is None
  picks = pair_solver.solve(program, scores, {"latency": (9.2, 9.3)})
  assert pair_program.total(program, picks, "latency") == 9.2
