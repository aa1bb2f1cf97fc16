"""What a network is called with: an array, several in order, or named ones."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asga_jax.network import arguments

ACCEPTED = (
  "expected one array of numbers, as the network takes it (a batch, its first"
  " axis the examples), a tuple of them in order, or a dict by name."
)

# What is no array: it is part of how the network is called.
_FIXED = (bool, int, float, complex, str, type(None))


@jax.tree_util.register_pytree_node_class
class Example:
  """The arguments of a call: a tuple in order, a dict by name, or one array.

  Equal for equal shapes and dtypes.
  """

  def __init__(self, given: Any):
    self.given = given

  def call(self, function: Callable[..., Any]) -> Any:
    """Call a function with the arguments."""
    if type(self.given) is tuple:
      return function(*self.given)
    if type(self.given) is dict:
      return function(**self.given)
    return function(self.given)

  def leaves(self) -> list[Any]:
    """List the arrays."""
    return list(self.tree_flatten()[0])

  def map(self, change: Callable[[Any], Any]) -> "Example":
    """Change every array."""
    arrays, structure = self.tree_flatten()
    return self.tree_unflatten(structure, map(change, arrays))

  def shapes(self, batch: Any = None) -> "Example":
    """Give the shapes alone, of another batch if one is given.

    The batch is the first axis of the arrays that have as many examples as the
    first of them.
    """

    def of(leaf: Any) -> jax.ShapeDtypeStruct:
      shape = np.shape(leaf)
      if batch is not None and shape and shape[0] == self.batch():
        shape = (batch, *shape[1:])
      return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))

    return self.map(of)

  def batch(self) -> int:
    """Give the size of the batch: the first axis of the first array."""
    return next(np.shape(leaf)[0] for leaf in self.leaves() if np.ndim(leaf))

  def names(self, function: Callable[..., Any], single: str) -> list[str]:
    """Name the arrays as a function that takes them does.

    Args:
      function: what it is called on: its parameters name what comes in order.
      single: the name of one array alone.
    """
    if not self.is_structured:
      return [single]
    given = self.given
    if type(given) is tuple:
      places = inspect.signature(function).parameters.values()
      several = (
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
      )
      named = [p.name for p in places if p.kind not in several]
      named += [f"input_{i}" for i in range(len(named), len(given))]
      given = dict(zip(named, given, strict=False))
      # Dictionaries flatten by name, and a tuple in order.
      parts = [
        leaf_names({name: value}, single) for name, value in given.items()
      ]
      every = [name for part in parts for name in part]
    else:
      every = leaf_names(given, single)
    _, (_, fixed) = self.tree_flatten()
    return [name for name, own in zip(every, fixed, strict=True) if own is None]

  def without_flags(self) -> "Example":
    """Leave out what is no array, as far as arguments are nothing else."""
    _, (tree, fixed) = self.tree_flatten()
    arrays = iter(self.leaves())
    leaves = [next(arrays) if own is None else None for own in fixed]
    given = jax.tree.unflatten(tree, leaves)
    if type(given) is tuple:
      return Example(tuple(x for x in given if jax.tree.leaves(x)))
    if type(given) is dict:
      return Example({k: x for k, x in given.items() if jax.tree.leaves(x)})
    return Example(given)

  def varying(self) -> list[bool]:
    """Tell which arrays have the batch as their first axis."""
    shapes = [np.shape(leaf) for leaf in self.leaves()]
    return [shape[:1] == (self.batch(),) for shape in shapes]

  @property
  def is_structured(self) -> bool:
    """Whether it is more than one array alone."""
    return isinstance(self.given, tuple | list | dict)

  @property
  def shape(self) -> Any:
    """Give the shape of an input without the batch; of several, the first."""
    return tuple(np.shape(self.leaves()[0])[1:])

  @property
  def is_blank(self) -> bool:
    """Whether there are shapes alone."""
    return any(isinstance(x, jax.ShapeDtypeStruct) for x in self.leaves())

  def describe(self) -> str:
    """Name dtypes and shapes."""
    return ", ".join(
      f"{jnp.result_type(leaf)} of shape {np.shape(leaf)}"
      for leaf in self.leaves()
    )

  def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
    """Be a pytree of its arrays; flags and the like are of its structure."""
    leaves, tree = jax.tree.flatten(self.given)
    fixed = tuple(
      (leaf,) if isinstance(leaf, _FIXED) else None for leaf in leaves
    )
    arrays = [
      leaf for leaf, own in zip(leaves, fixed, strict=True) if own is None
    ]
    return tuple(arrays), (tree, fixed)

  @classmethod
  def tree_unflatten(cls, structure: Any, children: Any) -> "Example":
    """Be a pytree of its arrays."""
    tree, fixed = structure
    arrays = iter(children)
    leaves = [next(arrays) if own is None else own[0] for own in fixed]
    return cls(jax.tree.unflatten(tree, leaves))

  def _key(self) -> Any:
    arrays, structure = self.tree_flatten()
    shapes = tuple((np.shape(x), jnp.result_type(x)) for x in arrays)
    return structure, shapes

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Example) and self._key() == other._key()

  def __hash__(self) -> int:
    return hash(self._key())


def leaf_names(tree: Any, single: str) -> list[str]:
  """Name the leaves of a pytree by where they stand, joined by underscores.

  Args:
    tree: any.
    single: the name of a leaf alone, and what names begin with that would
      begin with a number.
  """
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  found = []
  for path, _ in paths:
    parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
    if not parts or parts[0].isdigit():
      parts = [single, *parts]
    found.append("_".join(parts))
  return found


def as_example(given: Any) -> Example:
  """Check what a network is called with.

  Args:
    given: an array, a tuple of such (nested as the network takes them), a dict
      by name, or an `Example`; `jax.ShapeDtypeStruct` stands for shapes.

  Returns:
    The example.

  Raises:
    ValueError: something else, an empty array, or one that is not finite.
  """
  if isinstance(given, Example):
    return given
  example = Example(given).map(arguments.on_usual_axes)
  leaves = example.leaves()
  if isinstance(given, tuple | dict) and given and not leaves:
    raise ValueError(
      f"the example input is {_named(given)} without arrays; {ACCEPTED}"
    )
  if not leaves or isinstance(given, list | str):
    raise ValueError(f"the example input is {_named(given)}; {ACCEPTED}")
  for leaf in leaves:
    _check(leaf)
  if not any(np.ndim(leaf) for leaf in leaves):
    raise ValueError(
      f"the example input has the shape {np.shape(leaves[0])}; {ACCEPTED}"
    )
  return example


def each_of(batches: Any, name: str = "batches") -> Iterator[Example]:
  """Check batches one by one; see `as_example`.

  Args:
    batches: any iterable of them.
    name: what to call them in an error.

  Raises:
    ValueError: what holds no batches, such as one batch alone, or an empty one.
  """
  check_batches(batches, name)
  empty = True
  for batch in batches:
    empty = False
    yield as_example(batch)
  if empty:
    raise ValueError(f"{name} is empty; expected at least one batch of inputs.")


def check_batches(batches: Any, name: str = "batches") -> None:
  """Check that batches are an iterable and no batch; raises ValueError."""
  one = isinstance(batches, str | bytes | dict | np.ndarray | jax.Array)
  if one or not isinstance(batches, Iterable):
    raise ValueError(
      f"{name} is {_named(batches)}; expected a list of batches of inputs, or"
      " another iterable of them."
    )


def _named(given: Any) -> str:
  return f"a {type(given).__name__}" if given is not None else "None"


def _check(leaf: Any) -> None:
  blank = isinstance(leaf, jax.ShapeDtypeStruct)
  if not (blank or isinstance(leaf, np.ndarray | np.generic | jax.Array)):
    raise ValueError(f"the example input has {_named(leaf)}; {ACCEPTED}")
  # Of NumPy's types JAX refuses texts and objects.
  dtype: Any = leaf.dtype
  numeric = jnp.issubdtype(dtype, jnp.number) and dtype.kind != "c"
  if not numeric and dtype != np.dtype(bool):
    raise ValueError(f"the example input is of {dtype}; {ACCEPTED}")
  if 0 in np.shape(leaf):
    raise ValueError(
      f"the example input has the shape {np.shape(leaf)}; {ACCEPTED}"
    )
  if not blank and not bool(np.all(np.isfinite(np.asarray(leaf)))):
    raise ValueError(
      "the example input holds values that are not finite; initial ranges are "
      f"taken from them: {ACCEPTED}"
    )
  if not blank:
    own = np.asarray(leaf)
    lost = arguments.lost_by(own, jax.dtypes.canonicalize_dtype(own.dtype))
    if lost:
      raise ValueError(f"the example input {lost}; {ACCEPTED}")
