"""Checkpoints of a run: one pytree of arrays a step, written by Orbax.

The leaves are stored flat, each under its name in the tree, beside an index of
their shapes, dtypes and checksums. The index tells a checkpoint of another
model (an error that names the leaves) from a damaged one (the checkpoint
before it is taken instead). What cannot be read for another reason, such as a
permission, is an error: only proven damage sets a checkpoint aside.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax import checkpoint as ocp

from asga_jax.runs import checkpoint_leaves as leaves_lib
from asga_jax.training import sharding

_SHOWN = 5  # mismatching leaves that an error names
# How TensorStore's errors begin where files are not what they were.
_OF_DAMAGE = (
  "DATA_LOSS",
  "FAILED_PRECONDITION",
  "INVALID_ARGUMENT",
  "NOT_FOUND",
  "OUT_OF_RANGE",
)


class CheckpointError(ValueError):
  """Checkpoints that cannot be read, or that belong to another model."""


class _DamageError(ValueError):
  """What was read is not what was written."""


class Checkpoints:
  """Writes the checkpoints of one run and keeps the last few.

  A save is written in the background, under a temporary name until it is
  whole; what a killed run left half-written is removed at the start. Use it as
  a context manager, so that the last save is on disk at the end.
  """

  def __init__(self, directory: str | pathlib.Path, *, keep: int = 3):
    """Open a directory, creating it.

    Args:
      directory: where the checkpoints lie, one folder a step.
      keep: how many of the newest to keep, at least 2, so that one remains
        where the newest is damaged.

    Raises:
      ValueError: if `keep` is below 2.
    """
    if keep < 2:
      raise ValueError(f"keep is {keep}; it must be 2 or more")
      # Not left to Orbax, which does it in the background and may not finish.
    if jax.process_index() == 0:
      for leftover in pathlib.Path(directory).glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)
    self._manager = ocp.CheckpointManager(
      pathlib.Path(directory).absolute(),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
    )

  def save(
    self,
    step: int,
    state: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
  ) -> None:
    """Save the state of one step.

    Returns once the arrays are copied, so that their buffers may be donated;
    an error of the write in the background shows at the next call.

    Args:
      step: the step, 0 or more, after those that are there.
      state: a pytree of arrays, numbers and typed random keys.
      metadata: what else to keep of this step, as JSON (`read_metadata`).

    Raises:
      TypeError: if a leaf is none of those; the message names it.
      ValueError: if this step or a later one is there: Orbax would save nothing
        and say nothing.
    """
    leaves = leaves_lib.named_leaves(state)
    arrays = {name: leaves_lib.to_data(leaf) for name, leaf in leaves.items()}
    index = {
      "leaves": {
        n: leaves_lib.index_entry(leaves[n], arrays[n]) for n in leaves
      },
      "metadata": dict(metadata or {}),
    }
    self._manager.wait_until_finished()
    latest = self._manager.latest_step()
    if latest is not None and step <= latest:
      raise ValueError(f"step is {step}; expected one after {latest}, the last")
    # Orbax refuses empty arrays; the index is enough to restore them.
    filled = {name: array for name, array in arrays.items() if array.size}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(filled), index=ocp.args.JsonSave(index)
      ),
    )

  def close(self) -> None:
    """Wait until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


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
    raise _DamageError("its index is not that of a checkpoint")
  return index


def _first_line(error: BaseException) -> str:
  lines = str(error).splitlines() or [type(error).__name__]
  return lines[0].partition(" See full TensorStore")[0]


def _tell_damage(path: pathlib.Path, error: Exception) -> None:
  """Warn of a damaged checkpoint.

  It is damaged if all of its files can be read, and what they hold is wrong.

  Raises:
    CheckpointError: it cannot be read for another reason.
  """
  try:
    for folder, _, names in os.walk(path, onerror=_raise):
      for name in names:
        with open(pathlib.Path(folder, name), "rb") as file:
          while file.read(1 << 24):
            pass
  except OSError as failure:
    error = failure
  else:
    kinds = (_DamageError, json.JSONDecodeError, UnicodeError)
    if isinstance(error, (*kinds, FileNotFoundError)) or (
      isinstance(error, ValueError) and str(error).startswith(_OF_DAMAGE)
    ):
      logging.warning(
        "The checkpoint of step %s is damaged (%s): %s",
        path.name,
        path,
        _first_line(error),
      )
      return
  raise CheckpointError(
    f"the checkpoint {path} cannot be read, which does not prove it damaged: "
    f"{type(error).__name__}: {_first_line(error)}; mend that and give the "
    "same command again, or move the checkpoint away to go on from the one "
    "before it"
  ) from error


def _raise(error: OSError) -> NoReturn:
  raise error


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
      _tell_damage(path, error)
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
      raise _DamageError(f"the checksum of {name} is wrong")
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
      _tell_damage(path, error)
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
