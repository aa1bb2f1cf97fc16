"""Steps that are not finite, and are left out up to a bound."""

import math
from typing import NamedTuple

import jax
import numpy as np
import pytest

import asga_jax
from asga_jax.runs import config as config_lib
from asga_jax.training import loop, sharding


def _search(perceptron, **changed):
  return asga_jax.start_search(
    perceptron,
    budget="bops=3bit",
    settings=asga_jax.SearchSettings(
      # What is left out moves the step on, and a temperature falls with it.
      steps=5,
      temperature=(0.5, 0.5),
      **changed,
    ),
  )


@pytest.mark.slow
def test_a_run_goes_on_as_if_bad_batches_had_never_been(
  perceptron, tiny_batches
):
  """Over micro-batches too, of which one alone is bad."""
  first, second, third = tiny_batches[:3]
  images = first["image"].copy()
  images[3, 2, 2] = math.nan
  labels = np.where(np.arange(16) == 5, 7, second["label"])
  bad = {**first, "image": images}, {**second, "label": labels}
  found = []
  for batches, changed in (
    ([first, second, third], {}),
    (
      [first, bad[0], second, bad[1], third],
      {"skip_nonfinite": 2, "accumulate": 4},
    ),
  ):
    search = _search(perceptron, **changed)
    records = []
    state = loop.run(
      search.step,
      search.state,
      batches,
      len(batches),
      search.mesh,
      on_records=records.extend,
      skip_nonfinite=search.settings.skip_nonfinite,
    )
    found.append((state, records))
  (plain, whole), (state, records) = found
  assert (int(plain.step), int(state.step)) == (3, 5)
  assert plain.skipped == ()
  assert [int(r["skipped"]) for r in records] == [0, 1, 1, 2, 2]
  assert [math.isfinite(r["loss"]) for r in records] == [1, 0, 1, 0, 1]
  for name in ("loss", "gap", "radius", "multiplier", "gradient_norm"):
    good = [records[i][name] for i in (0, 2, 4)]
    wanted = [record[name] for record in whole]
    np.testing.assert_allclose(good, wanted, rtol=1e-4, atol=1e-6)
  for one, other in zip(
    jax.tree.leaves((plain.params, plain.optimizer, plain.sharpness)),
    jax.tree.leaves((state.params, state.optimizer, state.sharpness)),
    strict=True,
  ):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


class _State(NamedTuple):
  step: int
  skipped: int = 0


def _step(state, batch):
  """Counts bad batches as a compiled step does."""
  value = float(np.mean(batch))
  skipped = state.skipped + (not math.isfinite(value))
  state = _State(state.step + 1, skipped)
  return state, {"loss": value, "skipped": skipped}


def _run(values, **kwargs):
  size = sharding.data_mesh().size
  batches = [np.full(size, value, np.float32) for value in values]
  mesh = sharding.data_mesh()
  return loop.run(_step, _State(0), batches, len(values), mesh, **kwargs)


def test_more_of_them_than_may_be_end_the_run_at_the_last_checkpoint():
  saved, records = [], []
  with pytest.raises(loop.DivergedError) as caught:
    _run(
      [0, math.nan, 2, 3, 4, math.inf, 6, math.nan, 8],
      skip_nonfinite=2,
      flush_every=100,
      save_every=3,
      save=lambda step, state: saved.append((step, state.skipped)),
      saved_in="runs/a/checkpoints",
      on_records=records.extend,
    )
  said = str(caught.value)
  assert "the loss of step 8 is nan; skip_nonfinite=2 steps were left" in said
  assert "good checkpoint is that of step 6, runs/a/checkpoints/6" in said
  assert saved == [(3, 1), (6, 2)]
  assert [r["step"] for r in records] == list(range(1, 9))


def test_so_many_as_may_be_do_not():
  assert _run([0, math.nan, 2, math.nan], skip_nonfinite=2) == _State(4, 2)


def test_a_bound_below_zero_is_named():
  config = config_lib.default_config()
  for group, make in (
    (config.search, config_lib.search_settings),
    (config.finetune, config_lib.finetune_settings),
  ):
    group.skip_nonfinite = -1
    with pytest.raises(ValueError, match="skip_nonfinite=-1; expected a whol"):
      make(config)
