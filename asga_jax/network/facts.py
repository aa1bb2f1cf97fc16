"""What is known of a value in a traced program, before the network runs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# What gives its operand's values, perhaps narrower, in the same places.
_SAME = ("convert_element_type", "copy", "sharding_constraint", "asga_mark")
_MOVES = (
  *_SAME,
  "broadcast_in_dim",
  "concatenate",
  "dynamic_slice",
  "expand_dims",
  "gather",
  "pad",
  "reshape",
  "rev",
  "slice",
  "split",
  "squeeze",
  "transpose",
)
# What is not negative where no operand is.
_KEEPS_SIGN = frozenset(
  [
    *_MOVES,
    "add",
    "add_any",
    "conv_general_dilated",
    "cumsum",
    "div",
    "dot_general",
    "mul",
    "reduce_max",
    "reduce_min",
    "reduce_sum",
    "reduce_window_max",
    "reduce_window_sum",
    "sqrt",
    "stop_gradient",
  ]
)
_NEVER_NEGATIVE = frozenset(["abs", "exp", "exp2", "logistic", "square"])


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
  """What is known of a value."""

  # Whether it is the same for every input.
  constant: bool = False
  # Computes a constant; None for one that a loop steps through.
  evaluate: Callable[[], Any] | None = None
  # The variable that holds it just so, or in a wider type.
  source: str | None = None
  # The variables that a constant is made of.
  holds: frozenset[str] = frozenset()
  nonnegative: bool = False
  # The layer of whose product it is an operand.
  product: str | None = None


def alike(first: Known, second: Known) -> bool:
  """Say whether the same is known of two values of a loop."""
  return first is second or (
    first.evaluate is None
    and (first.constant, first.nonnegative)
    == (second.constant, second.nonnegative)
    and first.holds == second.holds
  )


def one_of(stack: Known) -> Known:
  """Give what is known of a part: its sign, and whether inputs change it."""
  return Known(stack.constant, holds=stack.holds, nonnegative=stack.nonnegative)


def joined(first: Known, second: Known) -> Known:
  """Give what is known of a value that is one of two."""
  if first is second:
    return first
  constant = first.constant and second.constant
  return Known(
    constant,
    holds=first.holds | second.holds if constant else frozenset(),
    nonnegative=first.nonnegative and second.nonnegative,
  )


def _is_key(value: Any) -> bool:
  return jax.dtypes.issubdtype(
    jax.numpy.result_type(value), jax.dtypes.prng_key
  )


def constant(value: Any) -> Known:
  """Give what is known of a value that the program holds."""
  array = np.asarray(value) if not _is_key(value) else value
  small = not _is_key(value) and array.size <= 4096
  positive = small and array.dtype.kind in "biuf" and bool((array >= 0).all())
  return Known(True, holding(value), nonnegative=positive)


def holding(value: Any) -> Callable[[], Any]:
  """Make the function that gives a value."""
  return lambda: value


def results(equation: Any, values: list[Known]) -> list[Known]:
  """Give what is known of the results of a plain operation."""
  name = equation.primitive.name
  constant = all(value.constant for value in values)
  evaluate = None
  if constant and all(value.evaluate for value in values):
    evaluate = _Once(equation, values)
  marked = [v.product for v in values if v.product and v.constant == constant]
  ended = name in ("dot_general", "conv_general_dilated")
  shared = Known(
    constant=constant,
    source=values[0].source if name in _SAME else None,
    holds=frozenset().union(*(v.holds for v in values if constant)),
    nonnegative=_is_nonnegative(name, equation, values),
    product=marked[0] if marked and not ended else None,
  )
  if evaluate is None:
    return [shared] * len(equation.outvars)
  return [
    dataclasses.replace(shared, evaluate=functools.partial(evaluate, index))
    for index in range(len(equation.outvars))
  ]


class _Once:
  """Computes an operation on constants, when and if it is asked for."""

  def __init__(self, equation: Any, values: list[Known]):
    self._equation, self._values = equation, values
    self._found: list[Any] | None = None

  def __call__(self, index: int) -> Any:
    """Give one of the results."""
    if self._found is None:
      operands = [value.evaluate() for value in self._values]  # type: ignore[misc]
      with jax.ensure_compile_time_eval():
        found = self._equation.primitive.bind(
          *operands, **self._equation.params
        )
      many = self._equation.primitive.multiple_results
      self._found = list(found) if many else [found]
    return self._found[index]


def _is_nonnegative(name: str, equation: Any, values: list[Known]) -> bool:
  known = [value.nonnegative for value in values]
  if name in _NEVER_NEGATIVE:
    return True
  if name == "max":
    return any(known)
  if name in ("min", *_KEEPS_SIGN):
    return all(known)
  if name == "integer_pow":
    return equation.params["y"] % 2 == 0 or known[0]
  if name == "select_n":
    return all(known[1:])
  if name == "clamp":
    return known[0]
  return False
