"""The loop over steps: figures in blocks, checkpoints, a stop at NaN."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import jax
from jax.sharding import Mesh

from asga_jax.training import nonfinite, sharding
from asga_jax.training import progress as progress_lib
from asga_jax.training import state as state_lib

# Figures of one step, 'step' (counted from 1) among them.
Record = dict[str, Any]


class FigureBuffer:
  """Holds figures of some steps on the device and fetches them together."""

  def __init__(self) -> None:
    self._steps: list[int] = []
    self._figures: list[Mapping[str, Any]] = []

  def add(self, step: int, figures: Mapping[str, Any]) -> None:
    """Take the figures of one step without waiting for them.

    Args:
      step: the step.
      figures: scalars by name, on the device or not.
    """
    self._steps.append(step)
    self._figures.append(figures)

  def flush(self) -> list[Record]:
    """Fetch all in one transfer and empty the buffer.

    Returns:
      One record a step.
    """
    fetched = jax.device_get(self._figures)
    records = [
      {"step": step, **figures}
      for step, figures in zip(self._steps, fetched, strict=True)
    ]
    self._steps, self._figures = [], []
    return records


class DivergedError(RuntimeError):
  """The loss or a gradient of a step is not finite."""


def _diverged(record: Record) -> str | None:
  """Name the figure that shows that a step spoilt the weights."""
  names = list(nonfinite.TELLING)
  # A second pass that was skipped has used no radius.
  if math.isnan(record.get("radius", 0.0)):
    names.remove("perturbed_gradient_norm")
  for name in names:
    if not math.isfinite(record.get(name, 0.0)):
      return name
  return None


def _ends(record: Record, skip_nonfinite: int) -> bool:
  """Tell whether a run ends at a step."""
  if skip_nonfinite:
    return bool(record["skipped"] > skip_nonfinite)
  return _diverged(record) is not None


def check_batches(batches: Any, steps: int = 0) -> None:
  """Check that batches are an iterable, and enough where that is known.

  Raises:
    ValueError: they are not.
  """
  single = isinstance(batches, Mapping | str | bytes)
  single |= getattr(batches, "ndim", 1) == 0
  if single or not isinstance(batches, Iterable):
    raise ValueError(
      f"batches is of type {type(batches).__name__}; expected a list or an "
      "iterator of batches."
    )
  if isinstance(batches, Sized) and len(batches) < steps:
    raise ValueError(
      f"batches are {len(batches)}; expected one for each of {steps} "
      "steps (itertools.cycle repeats them)."
    )


def run(
  step: Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]],
  state: state_lib.TrainState,
  batches: Iterable[Any],
  total: int,
  mesh: Mesh,
  *,
  pairs: bool = False,
  flush_every: int = 10,
  on_records: Callable[[list[Record]], None] | None = None,
  save: Callable[[int, state_lib.TrainState], None] | None = None,
  save_every: int = 100,
  last_saved: int | None = None,
  stop: Callable[[], bool] = lambda: False,
  skip_nonfinite: int = 0,
  saved_in: str = "",
) -> state_lib.TrainState:
  """Run a compiled step until `total` steps are done.

  Figures stay on the device for `flush_every` steps and are fetched together,
  so that the host does not wait at each step. Those of the first step are
  fetched at once: a run shows early that it works.

  Args:
    step: of (state, batch) or (state, batch, heldout).
    state: to go on from; donated.
    batches: from that step on.
    total: the number of the last step.
    mesh: where the batches go.
    pairs: whether the step takes two batches, and `batches` yields pairs.
    flush_every: steps from one fetch of figures to the next.
    on_records: takes each block of figures.
    save: takes (steps done, state), for a checkpoint; only states whose steps
      all had a finite loss are handed to it.
    save_every: steps from one save to the next; the last step is saved too.
    last_saved: the step of the newest checkpoint there is, for the error.
    stop: asked after each step whether to end there; that step is saved.
    skip_nonfinite: how many steps the compiled step may leave out, as its
      settings say.
    saved_in: where checkpoints lie, for the error.

  Returns:
    The state after the last step that was run.

  Raises:
    DivergedError: a loss is not finite, once more than may be left out; it
      names the step and the last checkpoint.
    ValueError: `batches` is or gives something else, or too few; known before
      the first step where they have a length.
  """
  first = done = int(state.step)
  check_batches(batches, total - first)
  source: Iterator[Any] = iter(batches)
  buffer = FigureBuffer()

  def flush() -> None:
    records = buffer.flush()
    bad = next((r for r in records if _ends(r, skip_nonfinite)), None)
    if on_records is not None:
      on_records(records[: records.index(bad) + 1] if bad else records)
    if bad is not None:
      name = _diverged(bad) or "gradient"
      kept = "there is no checkpoint"
      if last_saved is not None:
        place = f", {saved_in}/{last_saved}" if saved_in else ""
        kept = f"the last good checkpoint is that of step {last_saved}{place}"
      if skip_nonfinite:
        kept = f"skip_nonfinite={skip_nonfinite} steps were left out; {kept}"
      advice = "A lower learning rate or a smaller rho_max may help."
      if bad["step"] == 1:
        advice = (
          "Look at the first batch: its inputs must be finite, and its labels "
          "below the number of logits."
        )
      raise DivergedError(
        f"the {name} of step {bad['step']} is {bad.get(name, 'not finite')};"
        f" {kept}. {advice}"
      )

  while done < total:
    try:
      batch = next(source)
    except StopIteration:
      raise ValueError(
        f"batches ended after step {done}; expected enough for {total} steps."
      ) from None
    if pairs and not (isinstance(batch, tuple) and len(batch) == 2):
      raise ValueError(
        f"batches gave a {type(batch).__name__}; a bilevel search expects "
        "pairs (batch, held-out batch)."
      )
    parts = batch if pairs else (batch,)
    state, figures = step(
      state, *(sharding.place_batch(part, mesh) for part in parts)
    )
    done += 1
    buffer.add(done, figures)
    stopping = stop()
    last = done == total or stopping
    saving = save is not None and (done % save_every == 0 or last)
    if done == first + 1 or done % flush_every == 0 or saving or last:
      flush()
    if saving:
      assert save is not None
      save(done, state)
      last_saved = done
    if stopping:
      break
  return state


def run_watched(
  step: Callable[..., tuple[state_lib.TrainState, dict[str, jax.Array]]],
  state: state_lib.TrainState,
  batches: Iterable[Any],
  total: int,
  mesh: Mesh,
  *,
  label: str,
  figures: Iterable[str],
  progress: bool,
  pairs: bool = False,
  skip_nonfinite: int = 0,
) -> state_lib.TrainState:
  """Run a compiled step as `run` does, for somebody who looks on.

  Args:
    step: see `run`.
    state: see `run`.
    batches: see `run`.
    total: see `run`.
    mesh: see `run`.
    label: what the steps are of, e.g. 'search'.
    figures: those to show, where a step gives them.
    progress: whether to show steps and time left on a terminal or in a
      notebook; elsewhere nothing is shown.
    pairs: see `run`.
    skip_nonfinite: see `run`.

  Returns:
    The state after the last step.

  Raises:
    DivergedError, ValueError: see `run`.
  """
  run_all = functools.partial(
    run,
    step,
    state,
    batches,
    total,
    mesh,
    pairs=pairs,
    skip_nonfinite=skip_nonfinite,
  )
  if not progress:
    return run_all()
  with progress_lib.Progress(
    total, initial=int(state.step), label=label, lines=False
  ) as display:

    def show(records: list[Record]) -> None:
      last = records[-1]
      display.update(
        last["step"], {name: last[name] for name in figures if name in last}
      )

    return run_all(on_records=show)
