"""The policy: how many bits every layer gets, what that costs, and its file."""

import collections
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from asga_jax import checks, files

SCHEMA_VERSION = 1
FLOAT_BITS = 32
ACCEPTED_BITS = (2, 3, 4, 5, 6, 7, 8, FLOAT_BITS)


class PolicyError(ValueError):
  """A policy, or a policy file, that cannot be used."""


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_bits(value: Any) -> bool:
  return _is_int(value) and value in ACCEPTED_BITS


@dataclasses.dataclass(frozen=True)
class LayerChoice:
  """The bit-widths that one layer may get.

  Layers with the same non-empty `weight_group` share their weight bits, those
  with the same `activation_group` the bits of their input. A layer that is not
  searched has one candidate of each.

  Raises:
    ValueError: no candidates, duplicates, bits outside 2..8 and 32, or a layer
      that is not searched with more than one candidate.
  """

  weight_bits: tuple[int, ...]
  activation_bits: tuple[int, ...]
  _: dataclasses.KW_ONLY
  searched: bool
  weight_group: str = ""
  activation_group: str = ""

  def __post_init__(self):
    for name in ("weight_bits", "activation_bits"):
      bits = getattr(self, name)
      if (
        not bits
        or not all(_is_bits(b) for b in bits)
        or len(set(bits)) < len(bits)
      ):
        raise ValueError(
          f"{name} = {bits!r}: expected one or more different bit-widths, each"
          " in 2..8 or 32 (float)."
        )
      if not self.searched and len(bits) > 1:
        raise ValueError(
          f"{name} = {bits!r}: a layer that is not searched has exactly one"
          " candidate."
        )

  def weight_key(self, path: str) -> str:
    """Name what decides this layer's weight bits: its group or its path."""
    return self.weight_group or path

  def activation_key(self, path: str) -> str:
    """Name what decides this layer's input bits: its group or its path."""
    return self.activation_group or path


@dataclasses.dataclass(frozen=True)
class LayerPolicy:
  """One layer's bits; 32 means float, `macs` are per image.

  Raises:
    PolicyError: a field of the wrong type or out of range.
  """

  weight_bits: int
  activation_bits: int
  macs: int
  weights: int
  searched: bool

  def __post_init__(self):
    for name in ("weight_bits", "activation_bits"):
      if not _is_bits(getattr(self, name)):
        raise PolicyError(
          f"{name} = {checks.short(getattr(self, name))}: expected an integer"
          " in 2..8, or 32 for float."
        )
    for name in ("macs", "weights"):
      if not _is_int(getattr(self, name)) or getattr(self, name) < 0:
        raise PolicyError(
          f"{name} = {checks.short(getattr(self, name))}: expected an integer"
          " >= 0."
        )
    if not isinstance(self.searched, bool):
      raise PolicyError(
        f"searched = {self.searched!r}: expected true or false."
      )

  @property
  def bops(self) -> int:
    """Bit operations of the layer for one image."""
    return self.macs * self.weight_bits * self.activation_bits


@dataclasses.dataclass(frozen=True)
class Policy:
  """The bits of every layer of one network, in the order of the calls.

  `cost` holds at least `bops`, `bops_convention`, `size_bytes` and
  `budget_used` (the largest cost / limit); `provenance` any JSON object.

  Raises:
    PolicyError: a field of the wrong type or out of range, named with its
      value and with what is accepted.
  """

  model: str
  input_shape: tuple[int, ...]
  layers: Mapping[str, LayerPolicy]
  cost: Mapping[str, int | float | str]
  budget: str
  provenance: Mapping[str, Any]
  schema_version: int = SCHEMA_VERSION

  def __post_init__(self):
    if not _is_int(self.schema_version) or (
      self.schema_version != SCHEMA_VERSION
    ):
      raise PolicyError(
        f"schema_version = {checks.short(self.schema_version)}: this version"
        f" reads {SCHEMA_VERSION}."
      )
    for name in ("model", "budget"):
      if not isinstance(getattr(self, name), str):
        raise PolicyError(
          f"{name} = {checks.short(getattr(self, name))}: expected text."
        )
    if (
      not isinstance(self.input_shape, tuple)
      or not self.input_shape
      or not all(_is_int(size) and size > 0 for size in self.input_shape)
    ):
      raise PolicyError(
        f"input_shape = {checks.short(self.input_shape)}: expected sizes > 0,"
        " such as [224, 224, 3]."
      )
    for name in ("layers", "cost", "provenance"):
      if not isinstance(getattr(self, name), Mapping):
        raise PolicyError(
          f"{name} = {checks.short(getattr(self, name))}: expected an object."
        )
    if not self.layers:
      raise PolicyError("layers is empty: expected one or more layers.")
    for path, layer in self.layers.items():
      if not isinstance(path, str) or not isinstance(layer, LayerPolicy):
        raise PolicyError(
          f"layers has {path!r}: {checks.short(layer)}; expected a path and"
          " its LayerPolicy."
        )
    _check_cost(self.cost)


def check(policy: object) -> None:
  """Check that a policy is one; raises PolicyError otherwise."""
  if not isinstance(policy, Policy):
    raise PolicyError(
      f"policy is a {type(policy).__name__}; expected an asga_jax.Policy, as"
      " allocate or load_policy gives it."
    )


def _check_cost(cost: Mapping[str, Any]) -> None:
  for name in ("bops", "size_bytes", "budget_used"):
    if not _is_number(cost.get(name)) or cost[name] < 0:
      raise PolicyError(
        f"cost.{name} = {cost.get(name)!r}: expected a number >= 0."
      )
  if not isinstance(cost.get("bops_convention"), str):
    raise PolicyError(
      f"cost.bops_convention = {cost.get('bops_convention')!r}: expected text."
    )
  for name, value in cost.items():
    if not isinstance(value, str) and not _is_number(value):
      raise PolicyError(
        f"cost.{name} = {checks.short(value)}: expected a number or text."
      )


def to_json(policy: Policy) -> str:
  """Write a policy as JSON: the same text for the same policy.

  Raises:
    PolicyError: the provenance holds what JSON cannot.
  """
  try:
    return (
      json.dumps(
        {
          "schema_version": policy.schema_version,
          "model": policy.model,
          "input_shape": policy.input_shape,
          "layers": {
            path: dataclasses.asdict(layer)
            for path, layer in policy.layers.items()
          },
          "cost": dict(policy.cost),
          "budget": policy.budget,
          "provenance": dict(policy.provenance),
        },
        indent=2,
        allow_nan=False,
      )
      + "\n"
    )
  except (TypeError, ValueError) as error:
    raise PolicyError(f"the policy cannot be written as JSON: {error}") from (
      error
    )


def from_json(text: str, *, source: str = "policy") -> Policy:
  """Read a policy from JSON; `source` names it in errors.

  Raises:
    PolicyError: not JSON, duplicate, missing or unknown keys, or values that
      `Policy` does not accept.
  """
  try:
    raw = json.loads(
      text, object_pairs_hook=_unique_pairs, parse_constant=_no_constant
    )
    _check_keys(raw, Policy, "the policy")
    layers = raw["layers"]
    if isinstance(layers, dict):
      layers = {path: _layer(path, layer) for path, layer in layers.items()}
    shape = raw["input_shape"]
    return Policy(
      **{
        **raw,
        "layers": layers,
        "input_shape": tuple(shape) if isinstance(shape, list) else shape,
      }
    )
  except PolicyError as error:
    raise PolicyError(f"{source}: {error}") from error
  except (ValueError, RecursionError) as error:
    raise PolicyError(
      f"{source}: damaged or truncated, not JSON: {error}."
    ) from error


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  counts = collections.Counter(key for key, _ in pairs)
  twice = [key for key, count in counts.items() if count > 1]
  if twice:
    raise PolicyError(f"duplicate key {twice[0]!r}: expected each key once.")
  return dict(pairs)


def _no_constant(name: str) -> None:
  raise PolicyError(f"{name}: expected finite numbers.")


def _check_keys(raw: Any, kind: type, what: str) -> None:
  if not isinstance(raw, dict):
    raise PolicyError(f"{what} = {raw!r}: expected an object.")
  names = [field.name for field in dataclasses.fields(kind)]
  missing = [name for name in names if name not in raw]
  extra = [name for name in raw if name not in names]
  if missing or extra:
    raise PolicyError(
      f"{what} has the missing keys {missing} and the unknown keys {extra}:"
      f" expected exactly {names}."
    )


def _layer(path: str, raw: Any) -> LayerPolicy:
  _check_keys(raw, LayerPolicy, f"layer {path!r}")
  try:
    return LayerPolicy(**raw)
  except PolicyError as error:
    raise PolicyError(f"layer {path!r}: {error}") from error


def save(policy: Policy, path: str | os.PathLike) -> None:
  """Write a policy file that appears whole or not at all.

  Raises:
    OSError: the directory is missing or cannot be written.
    PolicyError: see `to_json`.
  """
  check(policy)
  files.write_text_atomic(path, to_json(policy))


def load(path: str | os.PathLike) -> Policy:
  """Read a policy file.

  Raises:
    PolicyError: the file is missing, unreadable, damaged or not a policy; the
      message names the file, the field and its value.
  """
  source = files.check_path(path)
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise PolicyError(
      f"{source}: cannot be read as a policy file: {error}."
    ) from error
  return from_json(text, source=source)
