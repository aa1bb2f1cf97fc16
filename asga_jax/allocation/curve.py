"""The Pareto curve of one search: the best score at every cost, and its file.

`pareto.json` is {"schema_version": 2, "model": ..., "cost": "bops", "unit":
"BOPs", "score": "first_order", "budget": "", "float_cost": ..., "complete":
false, "points": [{"cost": ..., "score": ..., "bits": {path: [bw, ba]}}, ...],
"uniform": [{"bits": 4, "cost": ..., "score": ...}, ...], "chosen": null or as a
point}. Costs are in `unit`, points by rising cost. Version 1 had sizes in bits.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import statistics
from collections.abc import Mapping
from typing import Any

import tabulate

from asga_jax import checks, files
from asga_jax import policy as policy_lib
from asga_jax.cost import costs as costs_lib

SCHEMA_VERSION = 2
_SIZES_IN_BITS = 1
# Points that the table shows.
_SHOWN = 12


class ParetoError(ValueError):
  """A Pareto curve, or its file, that cannot be used."""


def _check_number(name: str, value: Any, least: float = -math.inf) -> None:
  right = isinstance(value, int | float) and not isinstance(value, bool)
  if not right or not math.isfinite(value) or value < least:
    lowest = "" if least == -math.inf else f" >= {least:g}"
    raise ParetoError(
      f"{name} = {checks.short(value)}: expected a finite number{lowest}."
    )


@dataclasses.dataclass(frozen=True)
class ParetoPoint:
  """One policy: its cost, its score and its bits, by layer path.

  Raises:
    ParetoError: a field of the wrong type or out of range.
  """

  cost: costs_lib.Number
  score: float
  # Path -> (weight bits, activation bits), in the order of the calls.
  bits: Mapping[str, tuple[int, int]]

  def __post_init__(self):
    _check_number("cost", self.cost, 0)
    _check_number("score", self.score)
    if not isinstance(self.bits, Mapping) or not self.bits:
      raise ParetoError(
        f"bits = {checks.short(self.bits)}: expected one or more layers."
      )
    for path, pair in self.bits.items():
      if (
        not isinstance(pair, tuple)
        or len(pair) != 2
        or not all(type(b) is int for b in pair)
        or not set(pair) <= set(policy_lib.ACCEPTED_BITS)
      ):
        raise ParetoError(
          f"bits of {path!r} = {pair!r}: expected weight and activation bits,"
          " each in 2..8, or 32 for float."
        )


@dataclasses.dataclass(frozen=True)
class UniformPoint:
  """The policy with the same bits wherever there is a choice.

  Raises:
    ParetoError: a field of the wrong type or out of range.
  """

  bits: int
  cost: costs_lib.Number
  score: float

  def __post_init__(self):
    if type(self.bits) is not int or self.bits not in policy_lib.ACCEPTED_BITS:
      raise ParetoError(
        f"bits = {checks.short(self.bits)}: expected 2..8 or 32."
      )
    _check_number("cost", self.cost, 0)
    _check_number("score", self.score)


@dataclasses.dataclass(frozen=True)
class ParetoCurve:
  """Policies of which none beats another in both cost and score.

  The policy of each point has the largest score of all that cost no more and
  meet `budget`; cost and score rise from point to point.

  Raises:
    ParetoError: a field of the wrong type, no points, or points that do not
      rise or have different layers.
  """

  model: str
  # The cost and its unit: BOPs, bytes (size), ms (latency), "" for one's own.
  cost: str
  unit: str
  # The score; larger is better.
  score: str
  points: tuple[ParetoPoint, ...]
  # Uniform policies that meet `budget`.
  uniform: tuple[UniformPoint, ...] = ()
  # The policy of the search's own budget, if it meets `budget`.
  chosen: ParetoPoint | None = None
  # What every point meets besides its cost; "" for nothing.
  budget: str = ""
  # The cost with every layer in float32; None where that is not known.
  float_cost: costs_lib.Number | None = None
  # Whether the points are known to be all that the curve has.
  complete: bool = False

  def __post_init__(self):
    for name in ("model", "cost", "unit", "score", "budget"):
      if not isinstance(getattr(self, name), str):
        raise ParetoError(
          f"{name} = {checks.short(getattr(self, name))}: expected text."
        )
    if not isinstance(self.complete, bool):
      raise ParetoError(
        f"complete = {checks.short(self.complete)}: expected true or false."
      )
    if self.float_cost is not None:
      _check_number("float_cost", self.float_cost, 0)
    for name, kind in (("points", ParetoPoint), ("uniform", UniformPoint)):
      given = getattr(self, name)
      if not isinstance(given, tuple) or not all(
        isinstance(point, kind) for point in given
      ):
        raise ParetoError(
          f"{name}={checks.short(given)}; expected a tuple of {kind.__name__}."
        )
    if not isinstance(self.chosen, ParetoPoint | None):
      raise ParetoError(
        f"chosen={checks.short(self.chosen)}; expected a ParetoPoint or None."
      )
    if not self.points:
      raise ParetoError("points is empty: expected one or more.")
    for left, right in itertools.pairwise(self.points):
      if left.cost >= right.cost or left.score >= right.score:
        raise ParetoError(
          f"points at the costs {left.cost} and {right.cost} have the scores"
          f" {left.score} and {right.score}: expected both to rise."
        )
    for point in (*self.points, *filter(None, [self.chosen])):
      if set(point.bits) != set(self.points[0].bits):
        raise ParetoError(
          f"the point at the cost {point.cost} has the layers"
          f" {list(point.bits)}: expected {list(self.points[0].bits)}."
        )


def check(curve: object) -> None:
  """Check that a curve is one; raises ParetoError otherwise."""
  if not isinstance(curve, ParetoCurve):
    raise ParetoError(
      f"curve is a {type(curve).__name__}; expected an asga_jax.ParetoCurve, as"
      " pareto or load_pareto gives it."
    )


def to_json(curve: ParetoCurve) -> str:
  """Write a curve as JSON, the form that the module describes."""
  fields = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(curve)}
  text = json.dumps(fields, indent=1, allow_nan=False)
  # A layer a line: no string of JSON has a line break in it.
  return re.sub(r"\[\n\s+(\d+),\n\s+(\d+)\n\s+\]", r"[\1, \2]", text) + "\n"


def from_json(text: str, *, source: str = "pareto curve") -> ParetoCurve:
  """Read a curve from JSON; `source` names it in errors.

  Raises:
    ParetoError: not JSON, missing or unknown keys, another version, or values
      that `ParetoCurve` does not accept.
  """
  try:
    raw = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ParetoError(f"{source}: damaged or truncated: {error}.") from error
  try:
    fields = _checked(raw, ParetoCurve, "the curve", "schema_version")
    version = fields.pop("schema_version")
    if version == _SIZES_IN_BITS:
      fields = in_bytes(fields)
    elif version != SCHEMA_VERSION:
      raise ParetoError(
        f"schema_version = {version!r}: this version reads {SCHEMA_VERSION}."
      )
    for name, read in (("points", _point), ("uniform", _uniform)):
      if not isinstance(fields[name], list):
        raise ParetoError(f"{name} = {fields[name]!r}: expected a list.")
      fields[name] = tuple(
        read(item, f"{name}[{index}]")
        for index, item in enumerate(fields[name])
      )
    if fields["chosen"] is not None:
      fields["chosen"] = _point(fields["chosen"], "chosen")
    return ParetoCurve(**fields)
  except ParetoError as error:
    raise ParetoError(f"{source}: {error}") from error


def in_bytes(raw: Mapping[str, Any]) -> dict[str, Any]:
  """Bring the fields of a file of version 1 to the units of today."""
  if raw.get("unit") != "bits":
    return dict(raw)

  def changed(value: Any) -> Any:
    if isinstance(value, list):
      return [changed(item) for item in value]
    if isinstance(value, dict) and isinstance(value.get("cost"), int | float):
      return {**value, "cost": value["cost"] / 8}
    return value

  new = {name: changed(value) for name, value in raw.items()}
  if isinstance(new.get("float_cost"), int | float):
    new["float_cost"] /= 8
  return {**new, "unit": "bytes"}


def _checked(raw: Any, kind: type, what: str, *more: str) -> dict[str, Any]:
  """Copy an object that has exactly the fields of a class."""
  names = [*more, *(field.name for field in dataclasses.fields(kind))]
  if not isinstance(raw, dict) or set(raw) != set(names):
    found = sorted(raw) if isinstance(raw, dict) else raw
    raise ParetoError(
      f"{what} has {found!r}: expected an object with exactly the keys"
      f" {sorted(names)}."
    )
  return dict(raw)


def _point(raw: Any, what: str) -> ParetoPoint:
  fields = _checked(raw, ParetoPoint, what)
  if isinstance(fields["bits"], dict):
    fields["bits"] = {
      path: tuple(pair) if isinstance(pair, list) else pair
      for path, pair in fields["bits"].items()
    }
  try:
    return ParetoPoint(**fields)
  except ParetoError as error:
    raise ParetoError(f"{what}: {error}") from error


def _uniform(raw: Any, what: str) -> UniformPoint:
  try:
    return UniformPoint(**_checked(raw, UniformPoint, what))
  except ParetoError as error:
    raise ParetoError(f"{what}: {error}") from error


def save(curve: ParetoCurve, path: str | os.PathLike[str]) -> None:
  """Write a curve's file, whole or not at all; OSError if it cannot be."""
  check(curve)
  files.write_text_atomic(path, to_json(curve))


def load(path: str | os.PathLike[str]) -> ParetoCurve:
  """Read a curve's file.

  Raises:
    ParetoError: the file is missing, unreadable, damaged or not a curve; the
      message names the file, the field and its value.
  """
  source = files.check_path(path)
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise ParetoError(
      f"{source}: cannot be read as a Pareto curve: {error}."
    ) from error
  return from_json(text, source=source)


def format_table(curve: ParetoCurve) -> str:
  """Lay out some of the points, evenly spread, and the uniform policies.

  Bits are means over all layers. Beside a policy that is not on the curve
  stands the score that the curve reaches at no more cost.

  Returns:
    The lines, joined by newlines, without one at the end.
  """
  last = len(curve.points) - 1
  count = min(_SHOWN, last + 1)
  shown = {round(i * last / max(count - 1, 1)) for i in range(count)}
  entries: list[tuple[costs_lib.Number, float, str, str]] = []
  for index in sorted(shown):
    point = curve.points[index]
    entries.append((point.cost, point.score, _mean_bits(point), ""))
  if curve.chosen:
    mean = _mean_bits(curve.chosen)
    entries.append((curve.chosen.cost, curve.chosen.score, mean, "chosen"))
  for even in curve.uniform:
    entries.append((even.cost, even.score, "", f"uniform {even.bits} bits"))
  rows = [(curve.cost, "of float", curve.score, "bits w / a", "")]
  for cost, score, bits, mark in sorted(entries, key=lambda entry: entry[0]):
    share = f"{cost / curve.float_cost:.2%}" if curve.float_cost else "-"
    below = [point.score for point in curve.points if point.cost <= cost]
    if mark:
      mark += f" (curve {max(below):.5g})" if below else ""
    # Which takes sizes as they are counted, in bits.
    counted = 8 * cost if curve.unit == "bytes" else cost
    amount = costs_lib.format_amount(curve.cost, counted)
    rows.append((amount, share, f"{score:.5g}", bits, mark))
  return tabulate.tabulate(
    rows,
    tablefmt="plain",
    disable_numparse=True,
    colalign=(*("right",) * 4, "left"),
  )


def _mean_bits(point: ParetoPoint) -> str:
  weights, inputs = zip(*point.bits.values(), strict=True)
  return f"{statistics.fmean(weights):.2f} / {statistics.fmean(inputs):.2f}"
