"""Measured values in a file, from which a run that was ended goes on."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from asga_jax import files


class Cache:
  """Measured values in a file, for one network and its inputs."""

  def __init__(
    self, path: Any, model: nnx.Module, arrays: Any, settings: Sequence[Any]
  ):
    """Read what a file has.

    Args:
      path: of the file, which need not exist; None for no file.
      model: what is measured.
      arrays: a tree of what it is measured on.
      settings: what else values hang on, as text.

    Raises:
      ValueError: the file has values of others, or none, or cannot be written.
    """
    self._path = None if path is None else pathlib.Path(files.check_path(path))
    self._values: dict[str, Any] = {}
    if self._path is None:
      return
    leaves = nnx.state(model), arrays
    self._hash = _hash((*leaves, np.asarray([str(x) for x in settings])))
    if not self._path.exists():
      files.check_writable(self._path)
      return
    known, self._values = read(self._path)
    if known != self._hash:
      raise ValueError(
        f"{self._path} holds scores of another network, of other inputs,"
        " candidates or settings; expected those of this one, or no file."
      )

  def get(self, name: str) -> Any:
    """Give the values of a name, or None if they are not known."""
    return self._values.get(name)

  def put(self, name: str, values: Any) -> None:
    """Keep the values of a name, of what JSON takes."""
    self._values[name] = values
    if self._path is not None:
      text = json.dumps({"hash": self._hash, "values": self._values}, indent=1)
      files.write_text_atomic(self._path, text + "\n")


def read(path: pathlib.Path) -> tuple[str, dict[str, Any]]:
  """Read a file's hash and values; raises ValueError if it has none."""
  try:
    stored = json.loads(path.read_text())
    return stored["hash"], dict(stored["values"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} holds no scores: {error}; expected a file that measure_scores"
      " or fit_scores wrote."
    ) from error


def _hash(tree: Any) -> str:
  """Hash the values of all arrays."""
  made = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    kind = getattr(leaf, "dtype", None)
    if kind is not None and jax.dtypes.issubdtype(kind, jax.dtypes.prng_key):
      continue
    array = np.asarray(leaf)
    made.update(str((array.shape, array.dtype)).encode())
    made.update(np.ascontiguousarray(array).tobytes())
  return made.hexdigest()
