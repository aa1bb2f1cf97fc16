"""Latency tables: milliseconds per layer and bit-widths, as files and costs.

A JSON file holds

    {"schema_version": 1, "model": "resnet8 at 32x32", "how": "<text>",
     "unit": "ms", "entries": [
      {"layer": "stem", "weight_bits": 8, "activation_bits": 8, "ms": 0.12}]}

where `how` says what measured it and what is simulated; `model` and `how` may
be missing. A CSV file has the columns layer, weight_bits, activation_bits, ms.
Bits are in 2..8 or 32 (float); a latency is a number >= 0.
"""

import collections
import csv
import dataclasses
import io
import json
import numbers
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from asga_jax import checks, files
from asga_jax import policy as policy_lib
from asga_jax.cost import costs

SCHEMA_VERSION = 1
COLUMNS = ("layer", "weight_bits", "activation_bits", "ms")
_SHOWN = 5  # entries or layers that an error lists

# (layer path, weight bits, activation bits) -> ms.
Entries = Mapping[tuple[str, int, int], float]


class LatencyTableError(ValueError):
  """A latency table that is damaged, or that does not fit a network."""


@dataclasses.dataclass(frozen=True)
class LatencyTable:
  """Latencies of one network's layers, and where they come from."""

  entries: Entries
  model: str = ""
  how: str = ""


def latency_cost(table: Entries) -> costs.Cost:
  """Make a cost of a table (path, weight bits, activation bits) -> ms.

  The cost raises LatencyTableError where the table lacks entries for the
  candidates of a network, or has layers that the network lacks.

  Raises:
    LatencyTableError: a key or a latency that a file could not have either.
  """
  if not isinstance(table, Mapping) or not table:
    raise LatencyTableError(
      f"table={checks.short(table)}; expected a dict of (layer, weight"
      " bits, activation bits) -> ms, such as load_latency reads."
    )
  for key, ms in table.items():
    if not isinstance(key, tuple) or len(key) != 3:
      raise LatencyTableError(
        f"the latency table has the key {key!r}: expected (layer, weight bits,"
        " activation bits)."
      )
    # Of a number of NumPy, Python's own.
    plain = ms.item() if isinstance(ms, np.number) else ms
    _check_entry("the latency table", *key, plain)

  def layer_cost(layer: costs.LayerStats, bw: int, ba: int) -> costs.Number:
    try:
      return table[layer.path, bw, ba]
    except KeyError:
      raise LatencyTableError(
        f"the latency table has no entry for layer {layer.path!r} at"
        f" {bw} weight bits and {ba} activation bits: expected the key"
        f" {(layer.path, bw, ba)!r} -> ms."
      ) from None

  def constant(network: costs.NetworkStats) -> costs.Number:
    # What modules multiply by themselves counts where the table has it.
    paths = [layer.path for layer in network.float_layers]
    return sum(table.get((path, 32, 32), 0) for path in paths)

  return costs.Cost(
    "latency",
    layer_cost,
    constant,
    check=lambda network, choices: check_entries(table, network, choices),
  )


def load_latency(path: str | os.PathLike[str]) -> costs.Cost:
  """Read a latency table as a cost, for `costs=` of a search.

  Args:
    path: a JSON or CSV file; see this module.

  Returns:
    The cost "latency", in ms.

  Raises:
    LatencyTableError: see `load`.
  """
  return latency_cost(load(path).entries)


def check_entries(
  table: Entries, network: costs.NetworkStats, choices: costs.Choices
) -> None:
  """Check that a table has a network's layers, with all their candidates.

  Raises:
    LatencyTableError: unknown layers or missing entries; it lists the first.
  """
  given = dict.fromkeys(path for path, *_ in table)
  beside = {layer.path for layer in network.float_layers}
  unknown = [x for x in given if x not in network.paths and x not in beside]
  if unknown:
    raise LatencyTableError(
      f"the latency table has layers that the deployed network lacks:"
      f" {_first(unknown)}; expected those of {_first(network.paths)}."
    )
  missing = [
    (path, bw, ba)
    for path in network.paths
    for bw in choices[path].weight_bits
    for ba in choices[path].activation_bits
    if (path, bw, ba) not in table
  ]
  if missing:
    raise LatencyTableError(
      "the latency table lacks entries (layer, weight bits, activation bits)"
      f" for candidates of the search: {_first(missing)}; expected one for"
      " every pair of a layer's candidates."
    )


def load(path: str | os.PathLike[str]) -> LatencyTable:
  """Read a latency table.

  Args:
    path: a file of JSON, or of CSV where the name ends in .csv.

  Returns:
    The table.

  Raises:
    LatencyTableError: the file cannot be read, is of another version or unit,
      lacks columns or keys or has unknown ones, has an entry twice, bits that
      are not accepted, or a latency that is no finite number >= 0. The message
      names the file, the place and the value.
  """
  file = pathlib.Path(files.check_path(path))
  try:
    text = file.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise LatencyTableError(
      f"{file}: cannot be read as a latency table: {error}; expected a JSON or"
      " CSV file, such as launch/latency.py writes."
    ) from error
  try:
    if file.suffix.lower() == ".csv":
      return LatencyTable(_entries(_csv_rows(text)))
    return _from_json(text)
  except (LatencyTableError, csv.Error) as error:
    raise LatencyTableError(f"{file}: {error}") from error


def save(table: LatencyTable, path: str | os.PathLike[str]) -> None:
  """Write a table as JSON, or as CSV (entries alone) if the name ends so.

  Raises:
    OSError: the directory is missing or cannot be written.
  """
  rows = [
    dict(zip(COLUMNS, (*key, ms), strict=True))
    for key, ms in table.entries.items()
  ]
  if pathlib.Path(path).suffix.lower() == ".csv":
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text_atomic(path, buffer.getvalue())
    return
  head = {
    "schema_version": SCHEMA_VERSION,
    "model": table.model,
    "how": table.how,
    "unit": "ms",
  }
  # One entry a line, for people and for diffs.
  start = json.dumps(head, indent=1).removesuffix("\n}")
  lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
  files.write_text_atomic(path, f'{start},\n "entries": [\n{lines}\n ]\n}}\n')


def check_output(path: str | os.PathLike[str]) -> None:
  """Check that a table can be written, before it is measured.

  Raises:
    LatencyTableError: another suffix than .json or .csv, or a directory that
      is missing or cannot be written to.
  """
  file = pathlib.Path(path)
  if file.suffix.lower() not in (".json", ".csv"):
    raise LatencyTableError(f"{file}: expected a name in .json or .csv.")
  if file.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK):
    raise LatencyTableError(
      f"{file}: cannot be written; expected a file in a directory that is there"
      " and can be written to."
    )


def _from_json(text: str) -> LatencyTable:
  try:
    raw = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise LatencyTableError(
      f"damaged or truncated, not JSON: {error}; a CSV table's name ends in"
      " .csv."
    ) from error
  if not isinstance(raw, dict):
    raise LatencyTableError(
      f"it holds a {type(raw).__name__}; expected an object with"
      " schema_version, unit and entries."
    )
  # First: another version may have other keys.
  version = raw.get("schema_version")
  if type(version) is not int or version != SCHEMA_VERSION:
    raise LatencyTableError(
      f"schema_version = {version!r}: this version reads {SCHEMA_VERSION}."
    )
  required = ("schema_version", "unit", "entries")
  known = (*required, "model", "how")
  _check_names(raw, required, known, "the table")
  if raw["unit"] != "ms":
    raise LatencyTableError(f"unit = {raw['unit']!r}: expected 'ms'.")
  for name in ("model", "how"):
    if not isinstance(raw.get(name, ""), str):
      raise LatencyTableError(f"{name} = {raw[name]!r}: expected text.")
  rows = raw["entries"]
  if not isinstance(rows, list):
    raise LatencyTableError(f"entries is {rows!r}: expected a list.")
  entries = _entries(
    (f"entries[{index}]", row) for index, row in enumerate(rows)
  )
  return LatencyTable(entries, raw.get("model", ""), raw.get("how", ""))


def _csv_rows(text: str) -> Iterable[tuple[str, dict[str, Any]]]:
  reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
  header = reader.fieldnames or []
  _check_names(header, COLUMNS, COLUMNS, "the header")
  for raw in reader:
    line = f"line {reader.line_num}"
    if None in raw or None in raw.values():
      raise LatencyTableError(f"{line}: expected {len(header)} fields.")
    row: dict[str, Any] = dict(raw)
    for name, kind in (("weight_bits", int), ("activation_bits", int)):
      row[name] = _parsed(kind, row[name])
    yield line, {**row, "ms": _parsed(float, row["ms"])}


def _parsed(kind: type, text: str) -> Any:
  """Read a number; what is none is left for the check of the entry."""
  try:
    return kind(text)
  except ValueError:
    return text


def _entries(rows: Iterable[tuple[str, Any]]) -> Entries:
  entries: dict[tuple[str, int, int], float] = {}
  for where, row in rows:
    if not isinstance(row, dict):
      raise LatencyTableError(f"{where} is {row!r}: expected an object.")
    _check_names(row, COLUMNS, COLUMNS, where)
    layer, bw, ba, ms = (row[name] for name in COLUMNS)
    _check_entry(where, layer, bw, ba, ms)
    key = (layer, bw, ba)
    if key in entries:
      raise LatencyTableError(
        f"{where}: layer {layer!r} at {(bw, ba)} bits occurs twice:"
        " expected each entry once."
      )
    entries[key] = ms
  if not entries:
    raise LatencyTableError("it has no entries: expected one or more.")
  return entries


def _check_entry(
  where: str, layer: Any, weight_bits: Any, activation_bits: Any, ms: Any
) -> None:
  if not isinstance(layer, str) or not layer:
    raise LatencyTableError(f"{where}: layer = {layer!r}: expected a path.")
  bits = (weight_bits, activation_bits)
  for name, value in zip(COLUMNS[1:3], bits, strict=True):
    if (
      not isinstance(value, numbers.Integral)
      or isinstance(value, bool)
      or value not in policy_lib.ACCEPTED_BITS
    ):
      raise LatencyTableError(
        f"{where}: {name} = {value!r}: expected one of"
        f" {policy_lib.ACCEPTED_BITS}."
      )
  real = isinstance(ms, numbers.Real) and not isinstance(ms, bool)
  if not real or not 0 <= ms <= sys.float_info.max:
    raise LatencyTableError(
      f"{where}: ms = {ms!r} of layer {layer!r} at {bits} bits: expected a"
      " finite number >= 0."
    )


def _check_names(
  given: Iterable[str],
  required: tuple[str, ...],
  known: tuple[str, ...],
  what: str,
) -> None:
  # A list: a mapping would be taken for counts.
  counts = collections.Counter(list(given))
  missing = [name for name in required if name not in counts]
  extra = [n for n, count in counts.items() if n not in known or count > 1]
  if missing or extra:
    raise LatencyTableError(
      f"{what} lacks {missing} and has the unknown or repeated {extra}:"
      f" expected {list(known)}."
    )


def _first(items: Iterable[Any]) -> str:
  listed = list(items)
  shown = ", ".join(repr(item) for item in listed[:_SHOWN])
  rest = len(listed) - _SHOWN
  return f"{shown} and {rest} more" if rest > 0 else shown
