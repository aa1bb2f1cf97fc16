"""Files of weights: names and arrays, without a network."""

import errno
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
from orbax import checkpoint as ocp
from safetensors import numpy as safetensors_numpy

from asga_jax import files

SUFFIX = ".safetensors"
# Where the tree lies in what Orbax writes: directly, in a step of a
# `CheckpointManager`, in a step of a run of ours.
_ITEMS = ("", "default", "state")


class WeightsError(ValueError):
  """A file of weights that cannot be read, or that does not fit a network."""


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Read the arrays of a file by name.

  Args:
    path: a `.safetensors` file, or the directory of an Orbax checkpoint: of
      `ocp.StandardCheckpointer`, of one step of an `ocp.CheckpointManager`, or
      of one step of a run of ours. There names are paths joined by slashes.

  Raises:
    WeightsError: there is no such file, or it is of another kind or damaged.
  """
  file = pathlib.Path(files.check_path(path)).absolute()
  if not file.exists():
    raise WeightsError(
      f"the weights {os.fspath(path)} do not exist; expected a {SUFFIX} file "
      "or the directory of an Orbax checkpoint"
    )
  if file.is_dir():
    return _read_orbax(file)
  if file.suffix != SUFFIX:
    raise WeightsError(
      f"{file} is neither a {SUFFIX} file nor a directory; a state_dict of "
      "PyTorch is written in that form by safetensors.torch.save_file"
    )
  try:
    return safetensors_numpy.load_file(file)
  except (safetensors.SafetensorError, OSError, KeyError) as error:
    raise WeightsError(f"{file} cannot be read: {error}") from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
  """Read the texts by name that a `.safetensors` file has beside its arrays.

  Raises:
    WeightsError: there is no such file, or it is damaged.
  """
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      return file.metadata() or {}
  except (safetensors.SafetensorError, OSError) as error:
    raise WeightsError(f"{os.fspath(path)} cannot be read: {error}") from error


def write(
  path: str | os.PathLike[str],
  arrays: Mapping[str, Any],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Write arrays by name to a `.safetensors` file, whole or not at all.

  Args:
    path: the file; its directory must exist.
    arrays: of any dtype that the format has, float32 and bfloat16 among them.
    metadata: texts by name, for `read_metadata`.

  Raises:
    WeightsError: another suffix.
    OSError: if it cannot be written.
  """
  if pathlib.Path(files.check_path(path)).suffix != SUFFIX:
    raise WeightsError(
      f"path={os.fspath(path)}; expected a {SUFFIX} file to write weights to"
    )
  # The library writes the memory of an array whatever its strides.
  whole = {name: np.asarray(a, order="C") for name, a in arrays.items()}
  for name, array in whole.items():
    if array.dtype.kind in "OSU":
      raise WeightsError(f"{name!r} holds {array.dtype}; expected numbers.")
  texts = None if metadata is None else dict(metadata)
  files.write_bytes_atomic(path, safetensors_numpy.save(whole, texts))


def check_new(path: str | os.PathLike[str]) -> None:
  """Check before long work that a checkpoint of Orbax can be written.

  Raises:
    OSError: something is there, or its parent is missing or read-only.
  """
  if os.path.lexists(path):
    raise FileExistsError(
      errno.EEXIST, "is there already; expected a new directory", str(path)
    )
  files.check_writable(path)


def write_orbax(
  path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]
) -> None:
  """Write arrays to an Orbax checkpoint, whole or not at all.

  Args:
    path: the directory, which must not be there yet; its parent must be.
    arrays: by names that are paths joined by slashes, the keys of the tree.

  Raises:
    OSError: if it cannot be written, or is there.
  """
  check_new(path)
  tree: dict[str, Any] = {}
  for name, array in arrays.items():
    *parents, last = name.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = array
  with ocp.StandardCheckpointer() as writer:
    writer.save(pathlib.Path(path).absolute(), tree)


def _read_orbax(path: pathlib.Path) -> dict[str, np.ndarray]:
  found = [
    path / item for item in _ITEMS if (path / item / "_METADATA").is_file()
  ]
  if not found:
    raise WeightsError(
      f"{path} holds no checkpoint of Orbax; expected the directory of one "
      "tree of arrays, or of one step"
    )
  try:
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as reader:
      # Not of the reader, which warns where there is no step around the tree.
      tree = handler.metadata(found[0]).tree
      # Into NumPy, so that the devices it was written from do not matter.
      arguments = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
      )
      restored = reader.restore(found[0], restore_args=arguments)
  except Exception as error:  # Orbax and what reads for it raise all kinds
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    raise WeightsError(f"{path} cannot be read: {first_line}") from error
  leaves = jax.tree_util.tree_leaves_with_path(restored)
  return {_name(keys): np.asarray(leaf) for keys, leaf in leaves}


def _name(keys: tuple[Any, ...]) -> str:
  """Join the keys of a leaf.

  An `nnx.State` of variables has one key more, 'value'. A checkpoint of ours
  has a single one: the whole path in Python's notation, behind 'state'.
  """
  parts = [jax.tree_util.keystr((key,), simple=True) for key in keys]
  if len(parts) == 1 and parts[0].startswith("state"):
    return "/".join(re.findall(r"[^.\[\]']+", parts[0])[1:]) or parts[0]
  if len(parts) > 1 and parts[-1] == "value":
    parts.pop()
  return "/".join(parts)
