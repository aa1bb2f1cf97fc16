"""Functions that are traced once, and on a CPU also compiled once.

XLA writes a function out again wherever a program calls it. Where the cost of
compiling lies in the number of kernels, as on a CPU, a function that stays one
keeps a network of many equal layers, or a step of two passes, cheap to compile.
On other platforms XLA goes on to inline, since a call is a border to fusion.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
from jax.experimental import xla_metadata
from jax.extend import core

from asga_jax.xla import promotion, target

P = ParamSpec("P")
R = TypeVar("R")


def outlined(function: Callable[P, R]) -> Callable[P, R]:
  """Keep a function out of line; call the result with arrays alone.

  Calls share one program if they share the result of this function, and if
  shapes and dtypes agree. A function with a convolution that a CPU would run
  slowly out of line (see `channels_last`) is inlined after all.

  Args:
    function: of pytrees of arrays, to pytrees of arrays.

  Returns:
    The same function.
  """

  @jax.jit
  @functools.wraps(function)
  def compiled(*args: P.args, **kwargs: P.kwargs) -> R:
    with xla_metadata.set_xla_metadata(inlineable=None):
      return function(*args, **kwargs)

  @functools.wraps(function)
  def call(*args: P.args, **kwargs: P.kwargs) -> R:
    if target.platform() != "cpu":
      return compiled(*args, **kwargs)
    with xla_metadata.set_xla_metadata(inlineable="false"):
      if _runs_fast(compiled.trace(*args, **kwargs).jaxpr.jaxpr):
        return compiled(*args, **kwargs)
    return compiled(*args, **kwargs)

  return call


def channels_last(rank: int) -> jax.lax.ConvDimensionNumbers:
  """Give the layout of convolutions that XLA's CPU backend has a kernel for.

  [N, *spatial, C] and [*window, C, O]. It rewrites others to it, but only in a
  program's outermost computation: elsewhere they run about 50 times slower.
  """
  last = rank - 1
  outer = (0, last, *range(1, last))
  return jax.lax.ConvDimensionNumbers(
    outer, (last, last - 1, *range(rank - 2)), outer
  )


_FAST: weakref.WeakKeyDictionary[core.Jaxpr, bool] = weakref.WeakKeyDictionary()


def _runs_fast(jaxpr: core.Jaxpr) -> bool:
  """Say whether all convolutions of a function are in the layout above."""
  if jaxpr not in _FAST:
    _FAST[jaxpr] = _all_channels_last(jaxpr)
  return _FAST[jaxpr]


def _all_channels_last(jaxpr: core.Jaxpr) -> bool:
  """Look through a function, and those that it calls."""
  for equation in jaxpr.eqns:
    if equation.primitive is core.primitives.conv_general_dilated_p:
      numbers = equation.params["dimension_numbers"]
      if numbers != channels_last(len(numbers.lhs_spec)):
        return False
    for leaf in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr),
    ):
      if isinstance(leaf, core.ClosedJaxpr):
        leaf = leaf.jaxpr
      if isinstance(leaf, core.Jaxpr) and not _runs_fast(leaf):
        return False
  return True


def recomputed(function: Callable[..., R]) -> Callable[..., R]:
  """Keep a function out of line, and its arguments alone for its gradient.

  The backward pass calls the function again, so that nothing that it makes on
  the way takes memory in between. Reverse mode only.

  Args:
    function: of (variables, constants), pytrees of arrays; see `outlined`.

  Returns:
    The same function, with a gradient in the variables and none in the
    constants.
  """

  @promotion.usual()
  def pull_back(variables, constants, gradient):
    # Else XLA sees that the forward pass has computed the same, and keeps it.
    variables, gradient = jax.lax.optimization_barrier((variables, gradient))
    return jax.vjp(lambda v: function(v, constants), variables)[1](gradient)[0]

  forward: Callable[..., R] = outlined(function)
  backward: Callable[..., Any] = outlined(pull_back)
  result: Any = jax.custom_vjp(forward)
  result.defvjp(
    lambda variables, constants: (
      forward(variables, constants),
      (variables, constants),
    ),
    lambda kept, gradient: (backward(*kept, gradient), None),
  )
  return result
