"""The steps of a search in a work directory: batches in, figures out."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections

from asga_jax import data as data_lib
from asga_jax import search
from asga_jax.data import batches as batches_lib
from asga_jax.training import loop, metrics_log, tensorboard_log
from asga_jax.training import state as state_lib

# Figures that the progress display shows.
SHOWN = ("loss", "accuracy", "gap", "radius", "expected_use")


def open_events(
  directory: pathlib.Path,
) -> tensorboard_log.TensorBoardWriter:
  """Start event files with the steps that the metrics file holds."""
  records = metrics_log.read_metrics(directory / "metrics.jsonl")
  return tensorboard_log.TensorBoardWriter(directory / "tensorboard", records)


def batches(
  config: ml_collections.ConfigDict, splits: data_lib.Splits, first: int
) -> Iterator[Any]:
  """Yield raw batches from a step on: pairs with held-out ones if bilevel.

  Args:
    config: of the search.
    splits: of the proxy.
    first: how many steps were done.

  Yields:
    Batches of this process, as `data.batches.batch_at` gives them.
  """
  place: dict[str, Any] = {
    "batch_size": config.batch_size,
    "seed": config.search.seed,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
  }
  for step in range(first, config.search.steps):
    batch = batches_lib.batch_at(splits.train, step, **place)
    if config.search.mode == "bilevel":
      yield batch, batches_lib.batch_at(splits.heldout, step, **place)
    else:
      yield batch


def train(
  config: ml_collections.ConfigDict,
  made: search.Search,
  state: state_lib.TrainState,
  splits: data_lib.Splits,
  directory: pathlib.Path,
  first: int | None,
  save: Callable[[int, state_lib.TrainState], None],
  *,
  tensorboard: bool = False,
) -> state_lib.TrainState:
  """Run the steps that are left, with metrics, progress and checkpoints.

  Args:
    config: of the search.
    made: the search.
    state: to go on from; donated.
    splits: of the proxy.
    directory: the work directory; metrics.jsonl goes there.
    first: the step of the checkpoint that `state` comes from, None for none.
    save: takes (steps done, state), for a checkpoint.
    tensorboard: whether event files go to tensorboard/ there.

  Returns:
    The state after the last step.

  Raises:
    DivergedError: the loss is not finite.
  """
  done = first or 0
  with (
    metrics_log.MetricsWriter(
      directory / "metrics.jsonl", resume_step=first
    ) as writer,
    # After the metrics file: opening that drops what will be done again.
    open_events(directory)
    if tensorboard
    else contextlib.nullcontext() as events,
    metrics_log.Progress(
      config.search.steps, initial=done, label="search"
    ) as progress,
  ):

    def on_records(records: list[loop.Record]) -> None:
      writer.write(records)
      if events is not None:
        events.write(records)
      last = records[-1]
      progress.update(int(last["step"]), {name: last[name] for name in SHOWN})

    return loop.run(
      made.step,
      state,
      batches(config, splits, done),
      config.search.steps,
      made.mesh,
      pairs=config.search.mode == "bilevel",
      flush_every=config.flush_every,
      on_records=on_records,
      save=save,
      save_every=config.checkpoint_every,
      last_saved=first,
    )
