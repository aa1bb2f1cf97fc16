"""Checks of a configuration against the defaults of its recipe."""

import difflib
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import ml_collections

Config: TypeAlias = "ml_collections.ConfigDict | Mapping[str, Any]"
_NESTED = (ml_collections.ConfigDict, Mapping)


class ConfigError(ValueError):
  """A configuration with an unknown or missing key, or a wrong value."""


def _items(config: Config, prefix: str) -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    name = f"{prefix}{key}"
    yield name, value
    if isinstance(value, _NESTED):
      yield from _items(value, f"{name}.")


def _plain(value: Any, name: str) -> Any:
  if isinstance(value, _NESTED):
    parts = sorted(value.items())
    return {k: _plain(v, f"{name}.{k}") for k, v in parts}
  if isinstance(value, (list, tuple)):
    return [_plain(item, name) for item in value]
  if value is None or isinstance(value, (bool, str)):
    return value
  if isinstance(value, numbers.Integral):
    return int(value)
  if isinstance(value, numbers.Real):
    if not math.isfinite(value):
      raise ConfigError(f"{name} is {value}; it must be finite")
    return float(value)
  raise ConfigError(
    f"{name} is a {type(value).__name__} ({value!r}); a configuration holds "
    "numbers, strings, True, False, None and lists of these"
  )


def to_plain(config: Config) -> dict[str, Any]:
  """Turn a configuration into nested dicts of what JSON gives back.

  Args:
    config: a ConfigDict or a mapping, nested to any depth.

  Returns:
    Dicts with sorted keys; tuples have become lists.

  Raises:
    ConfigError: if a value is not finite or of a type that JSON lacks.
  """
  return _plain(config, "config")


def flatten(config: Config) -> dict[str, Any]:
  """List a configuration's values by dotted key, as plain JSON values.

  Args:
    config: a ConfigDict or a mapping, nested to any depth.

  Returns:
    The values by dotted key, sorted. A group without keys is `{}`.

  Raises:
    ConfigError: as `to_plain`.
  """
  items = _items(to_plain(config), "")
  return dict(sorted((k, v) for k, v in items if not v or type(v) is not dict))


def _accepts(default: Any, value: Any, kind: type) -> bool:
  """Tell whether a value may stand where the default stands."""
  if value is None:
    return default is None
  if kind is type(None):
    return True
  if isinstance(value, bool) or issubclass(kind, bool):
    return isinstance(value, bool) and issubclass(kind, bool)
  if issubclass(kind, numbers.Integral):
    return isinstance(value, numbers.Integral)
  if issubclass(kind, numbers.Real):
    return isinstance(value, numbers.Real)
  if issubclass(kind, (list, tuple)):
    if not isinstance(value, (list, tuple)):
      return False
    kinds = {type(item) for item in default or ()}
    if len(kinds) != 1:
      return True  # empty or mixed: nothing is known of the elements
    first = default[0]
    return all(_accepts(first, item, type(first)) for item in value)
  return isinstance(value, kind)


def _unknown_key(
  prefix: str, key: str, siblings: Config, known: list[str]
) -> ConfigError:
  """Say which accepted names come closest, here or elsewhere in the tree."""
  close = difflib.get_close_matches(key, list(siblings))
  elsewhere = [k for k in known if k.rpartition(".")[2] == key]
  names = [f"{prefix}{k}" for k in close] + elsewhere
  hint = f"did you mean {' or '.join(names)}?"
  if not names:
    hint = f"accepted: {', '.join(f'{prefix}{k}' for k in siblings)}"
  return ConfigError(f"config.{prefix}{key} is unknown; {hint}")


def check_keys(config: Config, defaults: Config) -> None:
  """Check that a configuration has the keys and types of the defaults.

  An integer may stand for a float and a list for a tuple; where the default is
  None without a type (`config_dict.placeholder` gives one) anything may stand.
  Whether a value makes sense is for the function that takes it to say.

  Args:
    config: what the user asked for.
    defaults: every accepted key with its default value.

  Raises:
    ConfigError: if a key is unknown (names the closest accepted ones) or
      missing, or if a value is of a wrong type.
  """
  _check_level(config, defaults, "", [name for name, _ in _items(defaults, "")])


def _check_level(
  config: Config, defaults: Config, prefix: str, known: list[str]
) -> None:
  for key in config:
    if key not in defaults:
      raise _unknown_key(prefix, key, defaults, known)
  for key in defaults:
    name = f"{prefix}{key}"
    default = defaults[key]
    if key not in config:
      what = (
        "a group of keys" if isinstance(default, _NESTED) else repr(default)
      )
      raise ConfigError(f"config.{name} is missing; its default is {what}")
    value = config[key]
    if isinstance(default, _NESTED):
      if not isinstance(value, _NESTED):
        raise ConfigError(
          f"config.{name} is {value!r}; it must be a group of keys: "
          + ", ".join(f"{name}.{k}" for k in default)
        )
      _check_level(value, default, f"{name}.", known)
      continue
    kind = type(default)
    if isinstance(defaults, ml_collections.ConfigDict):
      kind = defaults.get_type(key)  # a placeholder knows its type
    if isinstance(value, _NESTED) or not _accepts(default, value, kind):
      raise ConfigError(
        f"config.{name} is {value!r} of type {type(value).__name__}; it must "
        f"be of type {kind.__name__}, as its default {default!r}"
      )


def drop(
  config: ml_collections.ConfigDict, keys: Iterable[str]
) -> ml_collections.ConfigDict:
  """Remove keys, or groups of them, from a configuration, in place.

  Args:
    config: it may lack some.
    keys: dotted.

  Returns:
    The same configuration.
  """
  with config.unlocked():
    for key in keys:
      *groups, last = key.split(".")
      group = config
      for name in groups:
        group = group[name]
      if last in group:
        del group[last]
  return config
