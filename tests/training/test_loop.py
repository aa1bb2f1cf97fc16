"""The loop: blocks of figures, checkpoints, and a stop at NaN."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax.runs import checkpoints
from asga_jax.training import loop, sharding


class _State(NamedTuple):
  step: int
  total: float = 0.0


def _step(state, batch):
  """Adds up the batches; the loss is that of the batch."""
  value = jnp.mean(batch)
  state = _State(state.step + 1, state.total + float(value))
  return state, {"loss": value}


def _batches(values):
  size = sharding.data_mesh().size
  return [np.full(size, value, np.float32) for value in values]


def _run(values, total, *, first=0, **kwargs):
  return loop.run(
    kwargs.pop("step", _step),
    _State(first),
    _batches(values),
    total,
    sharding.data_mesh(),
    **kwargs,
  )


def test_a_loop_that_is_stopped_saves_the_step_it_is_at():
  answers = iter([False, False, True])
  seen, saved = [], []
  state = _run(
    range(9),
    9,
    flush_every=4,
    save_every=100,
    on_records=seen.extend,
    save=lambda step, state: saved.append((step, state.total)),
    stop=lambda: next(answers),
  )
  assert state.step == 3
  assert [record["step"] for record in seen] == [1, 2, 3]
  assert saved == [(3, 0.0 + 1.0 + 2.0)]


@pytest.mark.parametrize(
  ("first", "every", "blocks"),
  [
    (0, 3, [[1], [2, 3], [4, 5, 6], [7]]),
    (0, 100, [[1], [2, 3, 4, 5, 6, 7]]),
    (4, 2, [[5], [6], [7]]),
    (7, 2, []),
  ],
)
def test_every_step_is_recorded_once_in_blocks(first, every, blocks):
  seen = []
  state = _run(
    range(first, 9),
    7,
    first=first,
    flush_every=every,
    on_records=lambda records: seen.append(records),
  )
  assert [[r["step"] for r in block] for block in seen] == blocks
  assert all(r["loss"] == r["step"] - 1 for block in seen for r in block)
  assert state == _State(7, sum(range(first, 7)))


def test_saves_at_every_interval_and_at_the_end_after_the_records():
  events = []
  _run(
    range(8),
    8,
    flush_every=2,
    save_every=3,
    on_records=lambda records: events.extend(r["step"] for r in records),
    save=lambda step, state: events.append((step, state.step)),
  )
  assert events == [1, 2, 3, (3, 3), 4, 5, 6, (6, 6), 7, 8, (8, 8)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_naming_step_and_checkpoint(bad):
  saved, records = [], []
  with pytest.raises(loop.DivergedError) as caught:
    _run(
      [0, 1, 2, bad, 4, 5, 6, 7],
      8,
      flush_every=100,
      save_every=2,
      save=lambda step, _: saved.append(step),
      on_records=records.extend,
    )
  assert f"step 4 is {bad}" in str(caught.value)
  assert "last good checkpoint is that of step 2" in str(caught.value)
  # The state after the bad step is never saved; the bad record is kept.
  assert saved == [2]
  assert [r["step"] for r in records] == [1, 2, 3, 4]


def test_a_first_bad_step_says_that_there_is_no_checkpoint():
  with pytest.raises(loop.DivergedError, match=r"step 1 .*no checkpoint"):
    _run([math.nan], 1)


def test_after_a_resume_the_error_names_the_checkpoint_resumed_from():
  with pytest.raises(loop.DivergedError, match=r"step 6 .* of step 4"):
    _run([4, math.nan, 6, 7], 8, first=4, last_saved=4, flush_every=1)


def test_batches_that_end_early_are_an_error():
  batches = iter(_batches(range(2)))
  with pytest.raises(ValueError, match=r"ended after step 2; expected .* 5"):
    loop.run(_step, _State(0), batches, 5, sharding.data_mesh())


@pytest.mark.parametrize(
  ("batches", "named"),
  [
    (_batches(range(2)), "batches are 2; expected one for each of 3 steps"),
    ({"image": 1, "label": 2, "more": 3}, "batches is of type dict"),
    (7, "batches is of type int"),
  ],
)
def test_batches_that_cannot_do_are_an_error_before_any_step(batches, named):
  def step(state, batch):
    raise AssertionError("a step was made")

  with pytest.raises(ValueError, match=named):
    loop.run(step, _State(2), batches, 5, sharding.data_mesh())


def test_pairs_are_handed_on_as_two_batches():
  seen = []

  def step(state, batch, heldout):
    seen.append((float(batch[0]), float(heldout[0])))
    return _State(state.step + 1), {"loss": jnp.float32(0)}

  pairs = list(zip(_batches([1, 2]), _batches([3, 4]), strict=True))
  loop.run(step, _State(0), pairs, 2, sharding.data_mesh(), pairs=True)
  assert seen == [(1, 3), (2, 4)]


@pytest.mark.slow
def test_an_interrupted_search_goes_on_to_the_same_end(
  tiny_search, tiny_batches, compilations, tmp_path
):
  """The compiled step with its checkpoints, cut off between two of them."""

  class CutOffError(Exception):
    pass

  def run(batches, state, *, cut_at=None, last_saved=None):
    losses = []

    def on_records(records):
      losses.extend(r["loss"] for r in records)
      if cut_at and len(losses) >= cut_at:
        raise CutOffError

    with checkpoints.Checkpoints(tmp_path) as kept:
      end = loop.run(
        tiny_search.step,
        state,
        batches,
        6,
        tiny_search.mesh,
        flush_every=1,
        on_records=on_records,
        save=kept.save if cut_at or last_saved else None,
        save_every=2,
        last_saved=last_saved,
      )
    return end, losses

  def start():
    return sharding.place_replicated(tiny_search.state, tiny_search.mesh)

  whole, losses = run(tiny_batches, start())
  with pytest.raises(CutOffError):
    run(tiny_batches, start(), cut_at=5)
  step, state = checkpoints.restore_latest(tmp_path, start())
  assert step == 4
  before = len(compilations)
  resumed, rest = run(tiny_batches[step:], state, last_saved=step)
  # Restored arrays lie where the step's own do.
  assert len(compilations) == before
  assert rest == losses[4:]
  for count, rows in whole.params.logits.items():
    np.testing.assert_array_equal(resumed.params.logits[count], rows)
    np.testing.assert_array_equal(
      resumed.slope_sum[count], whole.slope_sum[count]
    )
  np.testing.assert_array_equal(resumed.multiplier, whole.multiplier)


def test_what_is_no_pair_is_refused_where_pairs_are_expected():
  with pytest.raises(ValueError, match=r"ndarray.*expects pairs"):
    _run([1.0], 1, pairs=True)


def test_a_tuple_is_one_batch_where_no_pairs_are_expected():
  (images,) = _batches([2.0])
  step = lambda state, batch: _step(state, batch[0] + batch[1])  # noqa: E731
  state = loop.run(step, _State(0), [(images, images)], 1, sharding.data_mesh())
  assert state.total == 4.0


@pytest.mark.parametrize(
  "name", ["gradient_norm", "perturbed_gradient_norm", "logit_spread"]
)
def test_weights_that_a_step_spoilt_stop_the_run(name):
  def step(state, batch):
    state, figures = _step(state, batch)
    return state, {**figures, name: jnp.where(state.step == 2, jnp.nan, 1.0)}

  with pytest.raises(loop.DivergedError, match=f"the {name} of step 2 is nan"):
    _run([0.0, 0.0, 0.0], 3, step=step)


def test_buffer_fetches_once_for_all_steps(monkeypatch):
  fetches = []
  device_get = jax.device_get
  monkeypatch.setattr(
    jax, "device_get", lambda tree: fetches.append(1) or device_get(tree)
  )
  buffer = loop.FigureBuffer()
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


@pytest.mark.parametrize("name", ["gap", "perturbed_gradient_norm"])
def test_a_skipped_second_pass_is_no_divergence(name):
  def step(state, batch):
    state, figures = _step(state, batch)
    skipped = {name: jnp.nan, "radius": jnp.nan} if state.step > 1 else {}
    return state, {"radius": 0.05, name: 1.0, **figures, **skipped}

  assert _run([0.0, 0.0, 0.0], 3, step=step).step == 3
