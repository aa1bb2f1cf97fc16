"""Checkpoints of a run: one pytree of arrays a step, written by Orbax.

The leaves are stored flat, each under its name in the tree, beside an index of
their shapes, dtypes and checksums. The index tells a checkpoint of another
model (an error that names the leaves) from a damaged one (the checkpoint
before it is taken instead). What cannot be read for another reason, such as a
permission, is an error: only proven damage sets a checkpoint aside.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax import checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from asga_jax.runs import checkpoint_damage as damage
from asga_jax.runs import checkpoint_leaves as leaves_lib
from asga_jax.runs import processes
from asga_jax.runs.checkpoint_damage import CheckpointError
from asga_jax.training import sharding

_SHOWN = 5  # mismatching leaves that an error names


class Checkpoints:
  """Writes the checkpoints of one run and keeps the last few and the best.

  A save is written in the background, under a temporary name until it is
  whole; what a killed run left half-written is removed at the start. Use it as
  a context manager, so that the last save is on disk at the end.
  """

  def __init__(
    self, directory: str | pathlib.Path, *, keep: int = 3, best: int = 0
  ):
    """Open a directory, creating it.

    Args:
      directory: where the checkpoints lie, one folder a step.
      keep: how many of the newest to keep, at least 2, so that one remains
        where the newest is damaged.
      best: how many of the lowest loss to keep beside them.

    Raises:
      ValueError: if `keep` is below 2 or `best` below 0.
    """
    if keep < 2 or best < 0:
      raise ValueError(
        f"keep is {keep} and best {best}; expected 2 or more, and 0 or more"
      )
    # Not left to Orbax, which does it in the background and may not finish.
    if jax.process_index() == 0:
      for leftover in pathlib.Path(directory).glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)
    self._directory = pathlib.Path(directory).absolute()
    policy: Any = policies.LatestN(n=keep)
    if best:
      lowest = policies.BestN(
        get_metric_fn=_loss,
        reverse=True,
        n=best,
        keep_checkpoints_without_metrics=False,
      )
      policy = policies.AnyPreservationPolicy([policy, lowest])
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=_loss if best else None,
        best_mode="min",
        create=True,
      ),
    )

  def save(
    self,
    step: int,
    state: Any,
    *,
    loss: float | None = None,
    metadata: Mapping[str, Any] | None = None,
  ) -> None:
    """Save the state of one step.

    Returns once the arrays are copied, so that their buffers may be donated;
    an error of the write in the background shows at the next call.

    Args:
      step: the step, 0 or more, after those that are there.
      state: a pytree of arrays, numbers and typed random keys.
      loss: by which it is among the best; never so without.
      metadata: what else to keep of this step, as JSON (`read_metadata`).

    Raises:
      TypeError: if a leaf is none of those; the message names it.
      ValueError: if this step or a later one is there: Orbax would save nothing
        and say nothing.
      CheckpointError: the one before could not be written.
    """
    leaves = leaves_lib.named_leaves(state)
    arrays = {name: leaves_lib.to_data(leaf) for name, leaf in leaves.items()}
    index = {
      "leaves": {
        n: leaves_lib.index_entry(leaves[n], arrays[n]) for n in leaves
      },
      "metadata": dict(metadata or {}),
    }
    self.wait()
    latest = self._manager.latest_step()
    if latest is not None and step <= latest:
      raise ValueError(f"step is {step}; expected one after {latest}, the last")
    # Orbax refuses empty arrays; the index is enough to restore them.
    filled = {name: array for name, array in arrays.items() if array.size}
    with self._written():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(filled), index=ocp.args.JsonSave(index)
        ),
        metrics=None if loss is None else {"loss": loss},
      )

  def wait(self) -> None:
    """Wait until what was saved is on disk; raises CheckpointError."""
    with self._written():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _written(self) -> Iterator[None]:
    """Say in a sentence what could not be written, and what there is."""
    try:
      yield
    except (OSError, ValueError) as error:
      if processes.lost_another(error):
        raise  # no fault of the disk
      step = latest_step(self._directory)
      good = "there is no other"
      if step is not None:
        good = f"that of step {step} is whole"
      raise CheckpointError(
        f"a checkpoint cannot be written to {self._directory}:"
        f" {damage.first_line(error)}; {good}. Make room there, and give the"
        " same command again"
      ) from error

  def close(self) -> None:
    """Wait until everything is on disk; raises CheckpointError."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def _loss(metrics: Mapping[str, float]) -> float:
  """Give what a checkpoint was saved with."""
  return metrics["loss"]


def _steps(directory: str | pathlib.Path) -> list[int]:
  """List the steps of a directory, the newest first; none without it."""
  path = pathlib.Path(directory)
  if not path.exists():
    return []
  if not path.is_dir():
    raise CheckpointError(
      f"{path} is no directory; expected the checkpoints of a run, or nothing"
    )
  names = (p.name for p in path.iterdir() if p.is_dir())
  return sorted((int(n) for n in names if n.isdecimal()), reverse=True)


def latest_step(directory: str | pathlib.Path) -> int | None:
  """Name the newest step saved, None without one; it is not read."""
  return next(iter(_steps(directory)), None)


def _read_index(path: pathlib.Path) -> dict[str, Any]:
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
    index = reader.restore(path / "index")
  if not isinstance(index, dict) or not {"leaves", "metadata"} <= index.keys():
    raise damage.DamageError("its index is not that of a checkpoint")
  return index


def latest_metadata(directory: str | pathlib.Path) -> dict[str, Any]:
  """Read the metadata of the newest checkpoint whose index is whole.

  Raises:
    CheckpointError: if there is none, or the newest cannot be read though it
      is not damaged.
  """
  for step in _steps(directory):
    path = pathlib.Path(directory).absolute() / str(step)
    try:
      return _read_index(path)["metadata"]
    except Exception as error:
      damage.tell(path, error)
  raise CheckpointError(
    f"{directory} holds no checkpoint that is whole; expected the work "
    "directory of a search"
  )


def _restore(
  path: pathlib.Path, saved: dict[str, Any], leaves: dict[str, Any]
) -> list[Any]:
  """Restore the leaves of one step, in the order of `leaves`."""
  templates = {name: leaves_lib.template(leaf) for name, leaf in leaves.items()}
  filled = {name: t for name, t in templates.items() if np.prod(t.shape)}
  with ocp.StandardCheckpointer() as reader:
    arrays = reader.restore(path / "state", filled) if filled else {}
  restored = []
  for name, leaf in leaves.items():
    if name in filled:
      data = arrays[name]
    else:
      # The template may be a description, which has no data to put.
      like = templates[name]
      empty = np.zeros(like.shape, like.dtype)
      lies = leaves_lib.device_sharding(leaf)
      data = sharding.put(empty, lies) if lies else jax.device_put(empty)
    wanted = saved[name]["crc32"]
    found = None if wanted is None else leaves_lib.checksum(data)
    if found not in (wanted, None):
      raise damage.DamageError(f"the checksum of {name} is wrong")
    restored.append(leaves_lib.to_leaf(leaf, data, saved[name]))
  return restored


def restore_latest(
  directory: str | pathlib.Path, target: Any, *, set_aside: bool = False
) -> tuple[int, Any] | None:
  """Restore the newest checkpoint that is whole.

  A damaged checkpoint is skipped with a warning that names it.

  Args:
    directory: where `Checkpoints` wrote.
    target: a pytree of arrays or `jax.ShapeDtypeStruct`s of the structure,
      shapes and dtypes saved. Leaves go to the sharding that the target's have;
      where it has none, or an uncommitted array, JAX chooses the device.
    set_aside: whether to rename the damaged ones that are newer to
      `<step>.damaged`, so that a run can save these steps again.

  Returns:
    The step and the state, or None where there is no checkpoint.

  Raises:
    CheckpointError: if the newest checkpoint cannot be read though it is not
      damaged (a permission, memory), if the newest whole one is of another
      model (its names, shapes or dtypes differ), or if all are damaged.
  """
  steps, leaves = _steps(directory), leaves_lib.named_leaves(target)
  damaged: list[pathlib.Path] = []
  for step in steps:
    path = pathlib.Path(directory).absolute() / str(step)
    try:
      saved = _read_index(path)["leaves"]
      mismatches = leaves_lib.mismatches(saved, leaves)
      restored = None if mismatches else _restore(path, saved, leaves)
    except Exception as error:
      damage.tell(path, error)
      damaged.append(path)
      continue
    if restored is None:
      rest = len(mismatches) - _SHOWN
      raise CheckpointError(
        f"{path} is a checkpoint of another model or configuration:\n  "
        + "\n  ".join(mismatches[:_SHOWN])
        + (f"\n  and {rest} more" if rest > 0 else "")
      )
    if set_aside and damaged:
      _set_aside(damaged)
    return step, jax.tree.unflatten(jax.tree.structure(target), restored)
  if steps:
    raise CheckpointError(
      f"all {len(steps)} checkpoints in {directory} are damaged; restore them "
      "from a copy, or start anew with another work directory"
    )
  return None


def _set_aside(paths: list[pathlib.Path]) -> None:
  """Rename damaged checkpoints, so that they are steps no longer."""
  if jax.process_index() == 0:
    for path in paths:
      others = len(list(path.parent.glob(f"{path.name}.damaged*")))
      number = f"-{others + 1}" if others else ""
      aside = path.with_name(f"{path.name}.damaged{number}")
      path.rename(aside)
      logging.warning("%s is kept as %s", path, aside.name)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("damaged checkpoints set aside")
