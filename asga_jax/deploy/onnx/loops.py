"""Loops and branches of a jaxpr: turn by turn, and by a choice of results."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from asga_jax.deploy.onnx.values import ExportError, Value

# A loop of more turns than this is no sensible file.
MOST_TURNS = 512

# Builds a jaxpr, of (jaxpr, constants, arguments).
Read = Callable[[Any, Sequence[Any], Sequence[Value]], list[Value]]
# Builds a function of JAX, of (function, values, what is known of them).
Write = Callable[
  [Callable[..., Any], Sequence[Value], Sequence[Any]], list[Value]
]


def scan(equation: Any, values: list[Value], read: Read, write: Write):
  """Build `scan` turn by turn, with the layers within it at each."""
  params = equation.params
  turns, consts, carries = (
    params[k] for k in ("length", "num_consts", "num_carry")
  )
  if not isinstance(turns, int) or turns > MOST_TURNS:
    raise ExportError(
      f"it turns {turns} times; expected at most {MOST_TURNS} turns, which a"
      " file holds one after another"
    )
  body = params["jaxpr"]
  fixed, carry = values[:consts], values[consts : consts + carries]
  avals = [variable.aval for variable in equation.invars]
  order = range(turns)[::-1] if params["reverse"] else range(turns)
  results: list[list[Value]] = []
  for turn in order:

    def at_turn(x, turn=turn):
      return lax.index_in_dim(x, turn, keepdims=False)

    each = [
      write(at_turn, [value], [aval])[0]
      for value, aval in zip(
        values[consts + carries :], avals[consts + carries :], strict=True
      )
    ]
    found = read(body.jaxpr, body.consts, [*fixed, *carry, *each])
    carry = found[:carries]
    results.append(found[carries:])
  if params["reverse"]:
    results.reverse()
  shapes = [
    jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    for aval in body.out_avals[carries:]
  ]
  stacked: list[Value] = []
  for i, shape in enumerate(shapes):
    if not turns:
      whole = (0, *shape.shape)
      if not all(isinstance(size, int) for size in whole):
        raise ExportError("it turns 0 times")
      stacked.append(np.zeros(whole, shape.dtype))
      continue
    parts = [found[i] for found in results]
    stacked += write(lambda *xs: jax.numpy.stack(xs), parts, [shape] * turns)
  return [*carry, *stacked]


def cond(equation: Any, values: list[Value], read: Read, write: Write):
  """Build a branch that is known, or all of them and a choice."""
  which, *operands = values
  branches = equation.params["branches"]
  if isinstance(which, np.ndarray):
    branch = branches[int(np.clip(which, 0, len(branches) - 1))]
    return read(branch.jaxpr, branch.consts, operands)
  found = [read(b.jaxpr, b.consts, operands) for b in branches]
  chosen = equation.invars[0].aval

  def choose(which, *cases):
    if which.dtype != bool:
      which = jax.numpy.clip(which, 0, len(cases) - 1)
    return lax.select_n(which, *cases)

  results = []
  for i, variable in enumerate(equation.outvars):
    cases = [each[i] for each in found]
    avals = [chosen, *[variable.aval] * len(cases)]
    results += write(choose, [which, *cases], avals)
  return results


LOOPS = {"cond": cond, "scan": scan}
