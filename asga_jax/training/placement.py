"""Which part of a training's state lies on which device: ordered rules."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from asga_jax import checks
from asga_jax.training import sharding

# A pattern of paths, and the axis of the mesh that the longest dimension that
# divides is split over, or an axis (or none) for each dimension.
Rule = Sequence[Any]
_SHOWN = 5


def check_rules(rules: Sequence[Rule]) -> None:
  """Check the form of rules; raises ValueError and names the bad one."""
  if not isinstance(rules, list | tuple):
    accepted = "a tuple of (pattern of paths, axis)"
    raise checks.refusal("shard", rules, accepted)
  for rule in rules:
    fits = isinstance(rule, list | tuple) and len(rule) == 2
    if fits:
      pattern, axes = rule
      fits = isinstance(pattern, str) and (
        isinstance(axes, str)
        or (
          isinstance(axes, Sequence)
          and all(axis is None or isinstance(axis, str) for axis in axes)
        )
      )
    if not fits:
      raise ValueError(
        f"shard has the rule {checks.short(rule)}; expected (pattern of paths,"
        " axis) or (pattern, (axis or None, ...)), an axis a dimension"
      )
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(
        f"shard has the pattern {pattern!r}: {error}; expected a regular"
        " expression"
      ) from error


def state_shardings(state: Any, mesh: Mesh, rules: Sequence[Rule]) -> Any:
  """Find where each leaf of a state lies.

  The first rule whose pattern is found in a leaf's path counts; the others lie
  on every device. Paths are as 'params/weights/stem/kernel' and
  'optimizer/.../weights/stem/kernel'.

  Args:
    state: a pytree of arrays or their shapes.
    mesh: of the axes that the rules name.
    rules: see `Rule`.

  Returns:
    A tree of shardings, as the state.

  Raises:
    ValueError: a rule that matches nothing, or that does not fit the mesh or
      what it matches.
  """
  leaves, structure = jax.tree_util.tree_flatten_with_path(state)
  used, found = set(), []
  names = [
    jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
  ]
  for name, (_, leaf) in zip(names, leaves, strict=True):
    spec = PartitionSpec()
    for number, (pattern, axes) in enumerate(rules):
      if re.search(pattern, name):
        used.add(number)
        spec = _spec(name, leaf.shape, axes, mesh)
        break
    found.append(NamedSharding(mesh, spec))
  for number, (pattern, _) in enumerate(rules):
    if number not in used:
      shown = ", ".join(names[:_SHOWN])
      raise ValueError(
        f"shard has the pattern {pattern!r}, which is that of no leaf that is"
        f" left by the rules before it; expected one of {len(names)} paths such"
        f" as {shown}"
      )
  return jax.tree_util.tree_unflatten(structure, found)


def _spec(
  name: str, shape: tuple[int, ...], axes: Any, mesh: Mesh
) -> PartitionSpec:
  named = [axes] if isinstance(axes, str) else [x for x in axes if x]
  for axis in named:
    if axis not in mesh.shape:
      raise ValueError(
        f"shard splits {name} over the axis {axis!r}; expected one of the mesh,"
        f" {', '.join(mesh.axis_names)}"
      )
  if isinstance(axes, str):
    fitting = [
      (size, dimension)
      for dimension, size in enumerate(shape)
      if size and size % mesh.shape[axes] == 0
    ]
    # What no dimension of divides is small: it lies on every device.
    if not fitting:
      return PartitionSpec()
    chosen = max(fitting)[1]
    return PartitionSpec(*(None,) * chosen, axes)
  if len(axes) > len(shape) or any(
    axis and size % mesh.shape[axis]
    for axis, size in zip(axes, shape, strict=False)
  ):
    raise ValueError(
      f"shard splits {name} of shape {shape} by {tuple(axes)} over the mesh"
      f" {dict(mesh.shape)}; expected dimensions that divide"
    )
  return PartitionSpec(*axes)


def without_data(shardings: Any) -> Any:
  """Give shardings that are whole along `data`, as else."""

  def whole(lies: NamedSharding) -> NamedSharding:
    kept = (None if x == sharding.DATA_AXIS else x for x in lies.spec)
    return NamedSharding(lies.mesh, PartitionSpec(*kept))

  return jax.tree.map(whole, shardings)


def place(state: Any, shardings: Any) -> Any:
  """Put a fresh copy of a state where it is to lie; see `state_shardings`."""
  return sharding.copied(sharding.put(state, shardings))


def place_like(state: Any, other: Any) -> Any:
  """Put a fresh copy of a state where another of its structure lies."""
  return place(state, jax.tree.map(lambda leaf: leaf.sharding, other))


def gathered(tree: Any, mesh: Mesh) -> Any:
  """Copy every leaf whole to every device.

  Of several processes each gets the copy of its first device: what is made of
  it needs no other process.
  """
  copies = jax.jit(
    lambda leaves: jax.tree.map(jax.numpy.copy, leaves),
    out_shardings=sharding.replicated(mesh),
  )(tree)
  if jax.process_count() == 1:
    return copies
  return jax.tree.map(lambda leaf: leaf.addressable_data(0), copies)
