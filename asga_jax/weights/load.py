"""Trained float weights from a file into a network, and back."""

import collections
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax import checks
from asga_jax.network import arguments, program
from asga_jax.weights import files as weight_files
from asga_jax.weights import name_maps
from asga_jax.weights import published as published_names

_SHOWN = 5  # names of each kind that an error lists
_UNPLACED = "names without a place"
_TWICE = "names for the same variable"
_EMPTY = "variables without a value"
_UNFIT = "arrays that do not fit"
# All but the keys and counts of random streams.
_SAVED = nnx.Not(nnx.Any(nnx.RngState, *program.UNSAVED))

# The names in the file are the paths of the variables.
_SAME = name_maps.NameMap((name_maps.NameRule("(.*)", r"\1"),))

_Problems: TypeAlias = collections.defaultdict[str, list[str]]
# Path of a variable -> its array and the name of that in the file.
_Placed: TypeAlias = dict[str, tuple[np.ndarray, str]]


def load_weights(
  model: nnx.Module,
  path: str | os.PathLike[str],
  *,
  name_map: name_maps.Given | None = None,
  skip: Sequence[str] = (),
) -> nnx.Module:
  """Fill a network with the weights and statistics of a file.

  Every name in the file must be placed or ignored by the map, and every
  variable but those skipped must be filled.

  Args:
    model: any Flax NNX module; it is not changed. What it draws at random it
      goes on drawing from its own streams.
    path: a `.safetensors` file or the directory of an Orbax checkpoint, see
      `weight_files.read`.
    name_map: how its names become paths of variables such as
      'blocks/0/expand/kernel': None where they are these paths, as
      `save_weights` writes them; 'torchvision', 'timm' or 'train_state', see
      `published_names`; a JSON file or its contents, see `name_maps`.
    skip: regular expressions of whole paths of variables that stay as they
      are, whatever the file holds for them, such as 'head/.*'.

  Returns:
    A copy in evaluation mode with the values of the file, each in the dtype of
    its variable.

  Raises:
    WeightsError: the file cannot be read or does not fit; the message lists
      the first few names, variables and shapes.
    NameMapError: the map cannot be used.
    ValueError: `skip` matches nothing.
  """
  arguments.check_module(model)
  _resolve(name_map)
  filled = fill(
    model,
    weight_files.read(path),
    source=os.fspath(path),
    name_map=name_map,
    skip=skip,
  )
  filled.eval()
  return filled


def fill(
  model: nnx.Module,
  arrays: Mapping[str, np.ndarray],
  *,
  source: str,
  name_map: name_maps.Given | None = None,
  skip: Sequence[str] = (),
) -> nnx.Module:
  """Fill a network with arrays by name, as `load_weights` does with a file's.

  Args:
    model: it is not changed.
    arrays: by name.
    source: where they come from, for errors.
    name_map: how names become paths of variables.
    skip: patterns of variables that stay as they are.

  Returns:
    A filled copy.

  Raises:
    ValueError: see `load_weights`.
  """
  table = _resolve(name_map)
  graphdef, *states = nnx.split(model, _SAVED, ...)
  state, streams = (nnx.as_pure(part) for part in states)
  variables = {
    program.variable_name(keys): (keys, like)
    for keys, like in nnx.to_flat_state(state)
  }
  skipped = _match(skip, variables)
  problems: _Problems = collections.defaultdict(list)
  placed = _place(table, arrays, set(variables), skipped, problems)
  flat = []
  for name, (keys, like) in variables.items():
    if name not in skipped:
      like = _fill(name, like, placed, problems)
    flat.append((keys, like))
  if problems:
    raise weight_files.WeightsError(
      f"{source} does not fit the network with "
      f"name_map={_describe(name_map)}, skip={list(skip)}:"
      + "".join(_list(kind, lines) for kind, lines in problems.items())
      + (_hint(arrays, variables) if _UNPLACED in problems else "")
      + "\n  skip=('PATTERN', ...) leaves variables as they are"
    )
  filled = nnx.from_flat_state(flat)
  loaded: nnx.Module = nnx.merge(graphdef, filled, streams)
  return loaded


def variables_of(
  model: nnx.Module, only: tuple[type[nnx.Variable], ...] = ()
) -> dict[str, Any]:
  """List the variables of a network by path, as `save_weights` writes them.

  Args:
    model: any Flax NNX module.
    only: their kinds; all but random streams, and what a call leaves behind,
      by default.

  Raises:
    ValueError: two variables whose paths are written alike.
  """
  kinds = nnx.Any(*only) if only else _SAVED
  state = nnx.as_pure(nnx.state(model, kinds))
  found: dict[str, Any] = {}
  for keys, leaf in nnx.to_flat_state(state):
    name = program.variable_name(keys)
    if name in found:
      raise ValueError(
        f"two variables of {type(model).__name__} have the path {name!r}, one"
        " of them by a name with a slash; expected other names."
      )
    found[name] = leaf
  return found


def save_weights(model: nnx.Module, path: str | os.PathLike[str]) -> None:
  """Write the weights and statistics of a network to a `.safetensors` file.

  Names are the paths of the variables joined by slashes, layouts are those of
  Flax; `load_weights` reads it without a map.

  Args:
    model: any Flax NNX module.
    path: the file; its directory must exist.

  Raises:
    ValueError: another suffix.
    OSError: if it cannot be written.
  """
  arguments.check_module(model)
  weight_files.write(
    path,
    {name: np.asarray(leaf) for name, leaf in variables_of(model).items()},
  )


def save_orbax(model: nnx.Module, path: str | os.PathLike[str]) -> None:
  """Write the weights and statistics of a network as an Orbax checkpoint.

  `load_weights` reads it without a map, and so does Orbax alone, as a tree of
  the paths of the variables.

  Args:
    model: any Flax NNX module, step sizes of its layers included.
    path: a directory that is not there yet.

  Raises:
    OSError: if it cannot be written, or is there.
  """
  state = nnx.as_pure(nnx.state(model, _SAVED))
  weight_files.write_orbax(
    path,
    {
      program.variable_name(keys): np.asarray(array)
      for keys, array in nnx.to_flat_state(state)
    },
  )


def _resolve(given: name_maps.Given | None) -> name_maps.NameMap:
  if given is None:
    return _SAME
  if isinstance(given, name_maps.NameMap):
    return given
  if isinstance(given, Mapping):
    return name_maps.parse(given, "name_map")
  if isinstance(given, str) and given in published_names.MAPS:
    return published_names.MAPS[given]
  if not isinstance(given, str | os.PathLike) or not os.path.isfile(given):
    raise name_maps.NameMapError(
      f"name_map={checks.short(given)}; expected None, a JSON file or its"
      f" contents, or one of {', '.join(published_names.MAPS)}"
    )
  return name_maps.read(given)


def _describe(given: name_maps.Given | None) -> str:
  is_name = given is None or isinstance(given, (str, os.PathLike))
  return repr(given) if is_name else "(as given)"


def _match(skip: Sequence[str], names: Mapping[str, Any]) -> set[str]:
  """Find the variables to skip; raises ValueError for an idle pattern."""
  if not isinstance(skip, list | tuple | set):
    raise checks.refusal("skip", skip, "a list of regular expressions")
  found: set[str] = set()
  for pattern in skip:
    try:
      matched = {name for name in names if re.fullmatch(pattern, name)}
    except (re.error, TypeError) as error:
      raise ValueError(
        f"skip={checks.short(pattern)} is not a regular expression: {error}"
      ) from error
    if not matched:
      raise ValueError(
        f"skip={pattern!r} matches no variable; they are "
        f"{', '.join(list(names)[:_SHOWN])}, ..."
      )
    found |= matched
  return found


def _place(
  table: name_maps.NameMap,
  arrays: Mapping[str, np.ndarray],
  wanted: set[str],
  skipped: set[str],
  problems: _Problems,
) -> _Placed:
  """Lay out the arrays of a file by variable."""
  placed: _Placed = {}
  subtracted: list[tuple[str, np.ndarray, str]] = []
  for name, array in arrays.items():
    if table.is_ignored(name):
      continue
    found = table.find(name)
    if found is None:
      problems[_UNPLACED].append(name)
      continue
    rule, places = found
    if not wanted.issuperset(places):
      told = "" if places == [name] else f" (for {' and '.join(places)})"
      problems[_UNPLACED].append(f"{name}{told}")
      continue
    if skipped.issuperset(places):
      continue
    try:
      parts = rule.parts(array)
    except name_maps.NameMapError as error:
      problems[_UNFIT].append(f"{name}: {error}")
      continue
    for place, part in zip(places, parts, strict=True):
      if rule.subtract:
        subtracted.append((place, part, name))
      elif place in placed:
        problems[_TWICE].append(f"{placed[place][1]}, {name}: {place}")
      else:
        placed[place] = part, name
  for place, part, name in subtracted:
    if place not in placed:
      continue  # reported as a variable without a value
    base, source = placed[place]
    if base.shape == part.shape:
      placed[place] = base - part, source
    else:
      problems[_UNFIT].append(
        f"{name}: found {list(part.shape)}, expected {list(base.shape)} as in "
        f"{source}"
      )
  return placed


def _fill(
  name: str, like: Any, placed: _Placed, problems: _Problems
) -> jax.Array:
  """Give a variable its array in its dtype, or itself and a problem."""
  if name not in placed:
    problems[_EMPTY].append(name)
    return like
  array, source = placed[name]
  wrong = _mismatch(array, like)
  if wrong:
    problems[_UNFIT].append(f"{name}: {wrong} (from {source})")
    return like
  return jnp.asarray(array, like.dtype)


def _mismatch(found: np.ndarray, like: Any) -> str:
  """Say why an array cannot fill a variable; '' where it can."""
  if found.shape != like.shape:
    return f"found {list(found.shape)}, expected {list(like.shape)}"
  floats = jnp.issubdtype(like.dtype, jnp.floating)
  if jnp.issubdtype(found.dtype, jnp.floating) != floats:
    return f"found {found.dtype}, expected {like.dtype}"
  if floats and not np.isfinite(found).all():
    return "holds values that are not finite"
  return arguments.lost_by(found, like.dtype)


def _hint(names: Iterable[str], variables: Collection[str]) -> str:
  """Tell which known maps have a place for every name of a file."""
  known = [(None, _SAME), *published_names.MAPS.items()]
  fitting = [
    f"\n  name_map={given!r} has a place for every name"
    for given, table in known
    if all(table.has_place(name, variables) for name in names)
  ]
  return "".join(fitting)


def _list(title: str, lines: Sequence[str]) -> str:
  shown = [f"\n    {line}" for line in lines[:_SHOWN]]
  if len(lines) > _SHOWN:
    shown.append(f"\n    and {len(lines) - _SHOWN} more")
  return f"\n  {title} ({len(lines)}):" + "".join(shown)
