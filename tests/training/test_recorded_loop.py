"""The loop in a work directory, beside what the runs of tests/ show of it."""

import gc
import types

import pytest

from asga_jax.training import recorded_loop, sharding


def test_objects_are_frozen_for_the_time_of_the_loop(tmp_path):
  frozen = []

  def step(*_):
    frozen.append(gc.get_freeze_count())
    raise KeyboardInterrupt

  assert gc.get_freeze_count() == 0
  with pytest.raises(KeyboardInterrupt):
    recorded_loop.train(
      step,
      types.SimpleNamespace(step=0),
      [{}],
      sharding.data_mesh(),
      recorded_loop.Plan("search", 1, 10, 10, ()),
      tmp_path,
      None,
      lambda *_: None,
    )
  assert frozen[0] > 1000
  assert gc.get_freeze_count() == 0
