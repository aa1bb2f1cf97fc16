"""Finished parts of a grid: each on file under the hash of what decides it."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from asga_jax import files

# Of what cells hold and how they are computed; others are not read.
VERSION = 1

Spec = Mapping[str, Any]
Value = dict[str, Any]


class CellError(ValueError):
  """A cell that was edited, is of another version or cannot be written."""


def key(spec: Spec) -> str:
  """Hash what decides a cell: 64 hexadecimal digits."""
  return _hash(spec)


def _hash(value: Any) -> str:
  text = json.dumps(value, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


class Store:
  """Cells in a folder, a file each, and those of a table beside results.

  Several processes may fill one store: a cell is a file that appears whole.
  """

  def __init__(
    self, folder: str | os.PathLike[str], archive: str | os.PathLike[str]
  ):
    """Read all cells.

    Args:
      folder: where new cells go; it is made if it is not there.
      archive: a file of cells, a line each, which may be missing: what earlier
        runs have found. See `write_archive`.

    Raises:
      CellError: a cell that was edited or is of another version, named by its
        file; or a folder that cannot be made.
    """
    self._folder, self._archive = pathlib.Path(folder), pathlib.Path(archive)
    self._cells: dict[str, dict[str, Any]] = {}
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise CellError(
        f"{folder} cannot be made: {error}; expected a folder for cells"
      ) from error
    if self._archive.exists():
      for number, line in enumerate(self._archive.read_text().splitlines(), 1):
        self._add(line, f"{self._archive}, line {number}")
    self.refresh()

  def refresh(self) -> None:
    """Read cells that other processes have finished since."""
    for path in sorted(self._folder.glob("*.json")):
      if path.stem not in self._cells:
        self._add(path.read_text(), str(path))

  def _add(self, text: str, where: str) -> None:
    try:
      cell = json.loads(text)
      spec, value = cell["spec"], cell["value"]
      version, found = cell["version"], cell["sha256"]
    except (ValueError, KeyError, TypeError) as error:
      raise CellError(
        f"{where} is no cell ({error}); expected it as it was written: restore"
        " or remove it, and it is computed again. The others are kept."
      ) from error
    if version != VERSION:
      raise CellError(
        f"{where} is of version {version} of these experiments; expected"
        f" {VERSION}: move it away, or go on with the version that wrote it"
      )
    if found != _hash([version, spec, value]):
      raise CellError(
        f"{where} was edited: its sha256 is not that of what it says; expected"
        " it as it was written: restore or remove it, and it is computed again."
        " The others are kept."
      )
    self._cells[key(spec)] = cell

  def get(self, spec: Spec) -> Value | None:
    """Give what was found for a spec, or None."""
    name = key(spec)
    path = self._folder / f"{name}.json"
    if name not in self._cells and path.exists():
      self._add(path.read_text(), str(path))
    return self._cells[name]["value"] if name in self._cells else None

  def put(self, spec: Spec, value: Value) -> Value:
    """Keep what was found for a spec.

    Raises:
      CellError: it cannot be written; all cells before it are kept.
    """
    cell = {"version": VERSION, "spec": spec, "value": value}
    # As it will be read: tuples are lists, keys are strings.
    cell = json.loads(json.dumps(cell))
    cell["sha256"] = _hash([VERSION, cell["spec"], cell["value"]])
    name = key(spec)
    path = self._folder / f"{name}.json"
    try:
      files.write_text_atomic(path, json.dumps(cell) + "\n")
    except OSError as error:
      raise CellError(
        f"{error}; the {len(self._cells)} cells before it are kept: make room"
        " and run the same command again"
      ) from error
    self._cells[name] = cell
    return cell["value"]  # type: ignore[no-any-return]

  def write_archive(self) -> None:
    """Write all cells that are known to the archive, a line each.

    Raises:
      CellError: it cannot be written; the old one is then as it was.
    """
    lines = [json.dumps(cell) for _, cell in sorted(self._cells.items())]
    try:
      files.write_text_atomic(self._archive, "\n".join(lines) + "\n")
    except OSError as error:
      raise CellError(f"{error}; all cells are kept") from error


def pack(flags: np.ndarray) -> str:
  """Write which images, shape (images,), bool, in hexadecimal digits."""
  return np.packbits(flags).tobytes().hex()


def unpack(value: Value, name: str) -> np.ndarray:
  """Read what `pack` wrote into a cell of figures."""
  packed = np.frombuffer(bytes.fromhex(value[name]), np.uint8)
  return np.unpackbits(packed, count=value["images"]).astype(bool)
