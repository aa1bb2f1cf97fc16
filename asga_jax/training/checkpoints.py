"""Checkpoints of a run: one pytree of arrays a step, written by Orbax.

The leaves are stored flat, each under its name in the tree, beside an index of
their shapes, dtypes and checksums. The index tells a checkpoint of another
model (an error that names the leaves) from a damaged one (the checkpoint
before it is taken instead).
"""

import logging as std_logging
import pathlib
import shutil
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax import numpy as jnp
from orbax import checkpoint as ocp

_HOST_TYPES = (np.ndarray, np.generic, bool, int, float)
_SHOWN = 5  # mismatching leaves that an error names


class CheckpointError(ValueError):
  """Checkpoints that cannot be read, or that belong to another model."""


def _is_not_chatter(record: std_logging.LogRecord) -> bool:
  parts = pathlib.Path(record.pathname).parts
  return record.levelno > std_logging.INFO or "orbax" not in parts


def quiet_orbax() -> None:
  """Drop Orbax's INFO lines (some thirty a save); warnings still show."""
  logging.get_absl_logger().addFilter(_is_not_chatter)


def _is_key(leaf: Any) -> bool:
  return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def _named_leaves(state: Any) -> dict[str, Any]:
  """List the leaves by name; raises TypeError for what is no array."""
  leaves = {
    "state" + jax.tree_util.keystr(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
  for name, leaf in leaves.items():
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, *_HOST_TYPES)):
      raise TypeError(
        f"{name} is a {type(leaf).__name__}; a checkpoint holds arrays, "
        "numbers and random keys"
      )
  return leaves


def _shape_dtype(leaf: Any) -> tuple[list[int], str]:
  leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
  return list(leaf.shape), str(leaf.dtype)


def _checksum(data: Any) -> int | None:
  """Sum the bytes of an array, None where other hosts hold a part of it."""
  if isinstance(data, jax.Array) and not data.is_fully_addressable:
    return None
  contents = np.ascontiguousarray(data).reshape(-1)
  return zlib.crc32(contents.view(np.uint8).data) if contents.size else 0


def _to_data(leaf: Any) -> jax.Array | np.ndarray:
  """Turn a leaf into a plain array; host arrays are copied."""
  if _is_key(leaf):
    return jax.random.key_data(leaf)
  return leaf if isinstance(leaf, jax.Array) else np.array(leaf)


def _index_entry(leaf: Any, data: jax.Array | np.ndarray) -> dict[str, Any]:
  shape, dtype = _shape_dtype(leaf)
  entry = {"shape": shape, "dtype": dtype, "crc32": _checksum(data)}
  if _is_key(leaf):
    entry["impl"] = str(jax.random.key_impl(leaf))
  return entry


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
    quiet_orbax()
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
      step: the step, 0 or more. Checkpoints of this step and of later ones,
        which a run leaves that had to resume from before them, are replaced.
      state: a pytree of arrays, numbers and typed random keys.
      metadata: what else to keep of this step, as JSON (`read_metadata`).

    Raises:
      TypeError: if a leaf is none of those; the message names it.
    """
    leaves = _named_leaves(state)
    arrays = {name: _to_data(leaf) for name, leaf in leaves.items()}
    index = {
      "leaves": {n: _index_entry(leaves[n], arrays[n]) for n in leaves},
      "metadata": dict(metadata or {}),
    }
    self._manager.wait_until_finished()
    for stale in [s for s in self._manager.all_steps() if s >= step]:
      self._manager.delete(stale)
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


def _read_index(directory: str | pathlib.Path, step: int) -> dict[str, Any]:
  path = pathlib.Path(directory).absolute() / str(step) / "index"
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
    index = reader.restore(path)
  if not isinstance(index, dict) or not {"leaves", "metadata"} <= index.keys():
    raise CheckpointError(f"{path} is not the index of a checkpoint")
  return index


def latest_metadata(directory: str | pathlib.Path) -> dict[str, Any]:
  """Read the metadata of the newest checkpoint whose index is whole.

  Raises:
    CheckpointError: if there is none.
  """
  quiet_orbax()
  for step in _steps(directory):
    try:
      return read_metadata(directory, step)
    except CheckpointError as error:
      logging.warning("The checkpoint of step %d is damaged: %s", step, error)
  raise CheckpointError(
    f"{directory} holds no checkpoint that is whole; expected the work "
    "directory of a search"
  )


def read_metadata(directory: str | pathlib.Path, step: int) -> dict[str, Any]:
  """Read what `Checkpoints.save` was given as metadata.

  Args:
    directory: where the checkpoints lie.
    step: one that `restore_latest` or `latest_step` returned.

  Raises:
    CheckpointError: if there is no such checkpoint or it is damaged.
  """
  try:
    return _read_index(directory, step)["metadata"]
  except Exception as error:
    raise CheckpointError(
      f"no readable metadata of step {step} in {directory}: {error}"
    ) from error


def _mismatches(saved: dict[str, Any], leaves: dict[str, Any]) -> list[str]:
  """Describe the leaves in which a checkpoint differs from the target."""
  lines = []
  for name in sorted(saved.keys() | leaves.keys()):
    entry = saved.get(name)
    found = entry and (entry["shape"], entry["dtype"])
    wanted = _shape_dtype(leaves[name]) if name in leaves else None
    if found != wanted:
      told = [f"{x[1]}{x[0]}" if x else "nothing" for x in (found, wanted)]
      lines.append(f"{name}: found {told[0]}, expected {told[1]}")
  return lines


def _device_sharding(leaf: Any) -> jax.sharding.Sharding | None:
  """Find where a leaf must go; None leaves the choice to JAX."""
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf.sharding
  committed = isinstance(leaf, jax.Array) and leaf.committed
  return leaf.sharding if committed else None


def _template(leaf: Any) -> Any:
  """Tell Orbax the shape, dtype and sharding to restore."""
  sharding = _device_sharding(leaf)
  data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
  data = data if hasattr(data, "dtype") else np.asarray(data)
  if sharding is not None:
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
  return np.broadcast_to(np.zeros((), data.dtype), data.shape)


def _to_leaf(like: Any, data: Any, entry: dict[str, Any]) -> Any:
  """Turn restored data into a leaf of the target's kind."""
  if isinstance(like, (bool, int, float)):
    return type(like)(data.item())
  if isinstance(like, _HOST_TYPES):
    return data[()] if isinstance(like, np.generic) else np.array(data)
  # A copy: a buffer of NumPy's must not be handed to a step that donates it.
  array = data if isinstance(data, jax.Array) else jnp.array(data, copy=True)
  if _is_key(like):
    return jax.random.wrap_key_data(array, impl=entry["impl"])
  return array


def _restore(
  path: pathlib.Path, saved: dict[str, Any], leaves: dict[str, Any]
) -> list[Any]:
  """Restore the leaves of one step, in the order of `leaves`."""
  templates = {name: _template(leaf) for name, leaf in leaves.items()}
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
      data = jax.device_put(empty, _device_sharding(leaf))
    checksum = saved[name]["crc32"]
    if checksum is not None and _checksum(data) not in (checksum, None):
      raise CheckpointError(f"the checksum of {name} is wrong")
    restored.append(_to_leaf(leaf, data, saved[name]))
  return restored


def restore_latest(
  directory: str | pathlib.Path, target: Any
) -> tuple[int, Any] | None:
  """Restore the newest checkpoint that is whole.

  A damaged checkpoint is skipped with a warning that names it.

  Args:
    directory: where `Checkpoints` wrote.
    target: a pytree of arrays or `jax.ShapeDtypeStruct`s of the structure,
      shapes and dtypes saved. Leaves go to the sharding that the target's have;
      where it has none, or an uncommitted array, JAX chooses the device.

  Returns:
    The step and the state, or None where there is no checkpoint.

  Raises:
    CheckpointError: if the newest readable checkpoint is of another model (its
      names, shapes or dtypes differ), or if all checkpoints are damaged.
  """
  quiet_orbax()
  steps, leaves = _steps(directory), _named_leaves(target)
  reason: Exception | None = None
  for step in steps:
    path = pathlib.Path(directory).absolute() / str(step)
    try:
      saved = _read_index(directory, step)["leaves"]
      mismatches = _mismatches(saved, leaves)
      restored = None if mismatches else _restore(path, saved, leaves)
    except Exception as error:
      first_line = (str(error).splitlines() or [type(error).__name__])[0]
      first_line = first_line.partition(" See full TensorStore")[0]
      logging.warning(
        "The checkpoint of step %d is damaged (%s): %s", step, path, first_line
      )
      reason = error
      continue
    if restored is None:
      rest = len(mismatches) - _SHOWN
      raise CheckpointError(
        f"{path} is a checkpoint of another model or configuration:\n  "
        + "\n  ".join(mismatches[:_SHOWN])
        + (f"\n  and {rest} more" if rest > 0 else "")
      )
    return step, jax.tree.unflatten(jax.tree.structure(target), restored)
  if steps:
    raise CheckpointError(
      f"all {len(steps)} checkpoints in {directory} are damaged; restore them "
      "from a copy, or start anew with another work directory"
    ) from reason
  return None
