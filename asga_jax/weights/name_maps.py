r"""How names and layouts in a file of weights become those of a network.

A map is a table of rules, the first that matches a whole name decides, and of
names that are ignored. As JSON, or the same in Python:

    {"rules": [
       {"pattern": "layer1\\.(\\d+)\\.conv1\\.weight",
        "path": "stages/0/\\1/conv1/kernel",
        "layout": "o i h w -> h w i o"}],
     "ignored": [".*\\.num_batches_tracked"]}

Fields of a rule: see `NameRule`. Since every name must be placed or ignored
and every variable filled, a rule that no name needs can do no harm: one table
may serve several networks.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import einops
import numpy as np

# How the linear and the convolution kernels of PyTorch become those of Flax.
TORCH_LINEAR = "o i -> i o"
TORCH_CONV = "o i h w -> h w i o"


class NameMapError(ValueError):
  """A map of names that cannot be used."""


@dataclasses.dataclass(frozen=True)
class NameRule:
  r"""Where the arrays of some names go.

  Raises:
    NameMapError: a pattern that is no regular expression, or a path that names
      a group that it lacks.
  """

  # Of whole names in the file, a regular expression.
  pattern: str
  # Of the variable, with \1, \2, ... for the pattern's groups. Several: the
  # array is first cut into as many equal parts along its first axis.
  path: str | tuple[str, ...]
  # An einops pattern, such as 'o i -> i o'; '' leaves the array as it is.
  layout: str = ""
  # Sizes of axes of `layout` that the array alone does not tell.
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  # Whether it is subtracted from what fills the variable: a bias before a
  # batch norm, whose mean takes it in.
  subtract: bool = False

  def __post_init__(self):
    _compile(self.pattern)
    # With nothing as a last choice it matches here, and every group is known.
    probe = re.fullmatch(f"{self.pattern}|", "")
    for path in self.paths:
      try:
        assert probe is not None
        probe.expand(path)
      except (re.error, IndexError) as error:
        raise NameMapError(
          f"path {path!r} does not go with pattern {self.pattern!r}: {error}"
        ) from error

  @property
  def paths(self) -> tuple[str, ...]:
    """Where the parts of an array go, before groups are filled in."""
    return (self.path,) if isinstance(self.path, str) else tuple(self.path)

  def places(self, name: str) -> list[str] | None:
    """Name the variables that an array fills, None where it does not match."""
    found = re.fullmatch(self.pattern, name)
    return found and [found.expand(path) for path in self.paths]

  def parts(self, array: np.ndarray) -> list[np.ndarray]:
    """Cut an array and lay out its parts.

    Raises:
      NameMapError: its shape does not fit.
    """
    shape, count = list(array.shape), len(self.paths)
    if count > 1 and (not shape or shape[0] % count):
      raise NameMapError(f"{shape} cannot be cut into {count} equal parts")
    parts = np.split(array, count) if count > 1 else [array]
    if not self.layout:
      return parts
    try:
      return [
        einops.rearrange(part, self.layout, **self.sizes) for part in parts
      ]
    except einops.EinopsError as error:
      sizes = f" with {dict(self.sizes)}" if self.sizes else ""
      raise NameMapError(
        f"{list(parts[0].shape)} does not fit the layout {self.layout!r}{sizes}"
      ) from error


@dataclasses.dataclass(frozen=True)
class NameMap:
  """Rules, and regular expressions of the names that are not used."""

  rules: Sequence[NameRule]
  ignored: Sequence[str] = ()

  def __post_init__(self):
    for pattern in self.ignored:
      _compile(pattern)

  def is_ignored(self, name: str) -> bool:
    """Tell whether a name is not used, whatever the rules say."""
    return any(re.fullmatch(pattern, name) for pattern in self.ignored)

  def find(self, name: str) -> tuple[NameRule, list[str]] | None:
    """Find the first rule for a name and the variables that it fills."""
    for rule in self.rules:
      places = rule.places(name)
      if places is not None:
        return rule, places
    return None

  def has_place(self, name: str, variables: Collection[str]) -> bool:
    """Tell whether a name is ignored or placed, in one of these variables."""
    found = self.find(name)
    return self.is_ignored(name) or (
      found is not None and all(place in variables for place in found[1])
    )


# What a user may hand over: a map, or its JSON as a mapping or in a file.
Given: TypeAlias = NameMap | Mapping[str, Any] | str | os.PathLike[str]


def parse(given: Mapping[str, Any], source: str) -> NameMap:
  """Make a map of what its JSON holds.

  Args:
    given: see the head of this module.
    source: what errors call it.

  Raises:
    NameMapError: names the field, its value and what is accepted.
  """
  _check_fields(given, {"rules"}, {"ignored"}, source)
  rules, ignored = given["rules"], given.get("ignored", ())
  if not _is_list(rules) or not all(isinstance(r, Mapping) for r in rules):
    raise NameMapError(
      f"{source}: 'rules' is {rules!r}; expected a list of objects"
    )
  if not _is_list(ignored) or not all(isinstance(i, str) for i in ignored):
    raise NameMapError(
      f"{source}: 'ignored' is {ignored!r}; expected a list of regular "
      "expressions"
    )
  made = []
  for index, fields in enumerate(rules):
    where = f"{source}: rules[{index}]"
    optional = {"layout", "sizes", "subtract"}
    _check_fields(fields, {"pattern", "path"}, optional, where)
    values = dict(fields)
    if _is_list(values["path"]):
      values["path"] = tuple(values["path"])
    _check_types(values, where)
    try:
      made.append(NameRule(**values))
    except NameMapError as error:
      raise NameMapError(f"{where}: {error}") from error
  try:
    return NameMap(tuple(made), tuple(ignored))
  except NameMapError as error:
    raise NameMapError(f"{source}: {error}") from error


def read(path: str | os.PathLike[str]) -> NameMap:
  """Read a map from JSON; raises NameMapError if that cannot be done."""
  try:
    given = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise NameMapError(
      f"the map of names {os.fspath(path)} cannot be read: {error}"
    ) from error
  if not isinstance(given, dict):
    raise NameMapError(
      f"{os.fspath(path)} holds a {type(given).__name__}; expected an object "
      "with 'rules'"
    )
  return parse(given, os.fspath(path))


def _compile(pattern: str) -> re.Pattern[str]:
  try:
    return re.compile(pattern)
  except re.error as error:
    raise NameMapError(
      f"{pattern!r} is not a regular expression: {error}"
    ) from error


def _is_list(value: Any) -> bool:
  return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _check_fields(
  given: Mapping[str, Any], needed: set[str], optional: set[str], source: str
) -> None:
  if needed <= given.keys() <= needed | optional:
    return
  raise NameMapError(
    f"{source} has the fields {sorted(given)}; expected {sorted(needed)} and "
    f"any of {sorted(optional)}"
  )


def _check_types(values: Mapping[str, Any], source: str) -> None:
  def is_paths(value: Any) -> bool:
    several = isinstance(value, tuple) and len(value) > 0
    return isinstance(value, str) or (
      several and all(isinstance(item, str) for item in value)
    )

  def is_sizes(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
      type(size) is int and size > 0 for size in value.values()
    )

  kinds = {
    "pattern": (lambda value: isinstance(value, str), "a string"),
    "path": (is_paths, "a string or a list of strings"),
    "layout": (lambda value: isinstance(value, str), "a string"),
    "sizes": (is_sizes, "an object of positive integers"),
    "subtract": (lambda value: isinstance(value, bool), "true or false"),
  }
  for name, value in values.items():
    accepts, expected = kinds[name]
    if not accepts(value):
      raise NameMapError(
        f"{source}: {name!r} is {value!r}; expected {expected}"
      )
