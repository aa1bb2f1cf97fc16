"""The loop in a work directory: metrics, progress, checkpoints, event files."""

import contextlib
import itertools
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from jax.sharding import Mesh

from asga_jax.runs import interrupts, metrics, processes
from asga_jax.runs import tensorboard as tensorboard_lib
from asga_jax.training import loop
from asga_jax.training import progress as progress_lib
from asga_jax.training import state as state_lib


class Plan(NamedTuple):
  """How long to run, and what to tell how often."""

  label: str  # what the steps are of, e.g. 'search'
  steps: int  # the number of the last step
  flush_every: int
  save_every: int
  # Figures that the progress display shows.
  shown: tuple[str, ...]
  # Whether the step takes two batches.
  pairs: bool = False
  # How many steps the step may leave out.
  skip_nonfinite: int = 0


def open_events(
  directory: pathlib.Path,
) -> tensorboard_lib.TensorBoardWriter:
  """Start event files with the steps that the metrics file holds."""
  records = metrics.read_metrics(directory / "metrics.jsonl")
  return tensorboard_lib.TensorBoardWriter(directory / "tensorboard", records)


def train(
  step: Any,
  state: state_lib.TrainState,
  batches: Iterable[Any],
  mesh: Mesh,
  plan: Plan,
  directory: pathlib.Path,
  first: int | None,
  save: Callable[..., None],
  *,
  tensorboard: bool = False,
) -> state_lib.TrainState:
  """Run the steps that are left, with metrics, progress and checkpoints.

  Args:
    step: of (state, batch) or (state, batch, heldout), compiled.
    state: to go on from; donated.
    batches: from that step on.
    mesh: where the batches go.
    plan: how long, and what to tell.
    directory: the work directory; metrics.jsonl goes there.
    first: the step of the checkpoint that `state` comes from, None for none.
    save: takes (steps done, state, loss=), for a checkpoint; the loss is the
      mean since the one before, None where no step's was finite.
    tensorboard: whether event files go to tensorboard/ there.

  Returns:
    The state after the last step.

  Raises:
    DivergedError: the loss is not finite.
    Stopped: a signal came; the step it came at is saved. Of several processes,
      to any of them; the last of a block of `flush_every` steps is saved.
  """
  telling = _telling(plan, directory, first, tensorboard)
  with (
    # Entered first: at its end the processes agree, and the metrics of the one
    # that writes are then whole for all.
    interrupts.steps(processes.agree) as stop,
    telling if processes.first() else contextlib.nullcontext() as tell,
  ):
    losses: list[float] = []

    def save_with_loss(done: int, state: state_lib.TrainState) -> None:
      save(done, state, loss=statistics.fmean(losses) if losses else None)
      losses.clear()

    def on_records(records: list[loop.Record]) -> None:
      losses.extend(
        float(r["loss"]) for r in records if math.isfinite(r["loss"])
      )
      if tell is not None:
        tell(records)

    return loop.run(
      step,
      state,
      batches,
      plan.steps,
      mesh,
      pairs=plan.pairs,
      flush_every=plan.flush_every,
      on_records=on_records,
      save=save_with_loss,
      save_every=plan.save_every,
      last_saved=first,
      stop=_every(plan.flush_every, first or 0, stop)
      if processes.several()
      else stop,
      skip_nonfinite=plan.skip_nonfinite,
      saved_in=str(directory / "checkpoints"),
    )


def _every(
  number: int, first: int, stop: Callable[[], bool]
) -> Callable[[], bool]:
  """Ask once in so many steps: processes wait for each other to agree."""
  asked = itertools.count(first + 1)
  return lambda: next(asked) % number == 0 and stop()


@contextlib.contextmanager
def _telling(
  plan: Plan, directory: pathlib.Path, first: int | None, tensorboard: bool
) -> Iterator[Callable[[list[loop.Record]], None]]:
  """Give what writes and shows the records of steps; see `train`."""
  with (
    metrics.MetricsWriter(
      directory / "metrics.jsonl", resume_step=first
    ) as writer,
    # After the metrics file: opening that drops what will be done again.
    open_events(directory)
    if tensorboard
    else contextlib.nullcontext() as events,
    progress_lib.Progress(
      plan.steps, initial=first or 0, label=plan.label
    ) as progress,
  ):

    def on_records(records: list[loop.Record]) -> None:
      writer.write(records)
      if events is not None:
        events.write(records)
      # Of each the newest: a step without a second pass lacks some.
      shown = {
        name: record[name]
        for record in records
        for name in plan.shown
        if math.isfinite(record[name])
      }
      progress.update(int(records[-1]["step"]), shown)

    yield on_records
