"""Functions that are traced once, and on a CPU also compiled once.

XLA writes a function out again wherever a program calls it. Where the cost of
compiling lies in the number of kernels, as on a CPU, a function that stays one
keeps a network of many equal layers, or a step of two passes, cheap to compile.
On other platforms XLA goes on to inline, since a call is a border to fusion.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.experimental import xla_metadata

P = ParamSpec("P")
R = TypeVar("R")


def outlined(function: Callable[P, R]) -> Callable[P, R]:
  """Keep a function out of line; call the result with arrays alone.

  Calls share one program if they share the result of this function, and if
  shapes and dtypes agree. XLA's CPU backend runs convolutions in an outlined
  function fast only where `training.lowering` has put them in its own layout,
  gradients included.

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
    if jax.default_backend() != "cpu":
      return compiled(*args, **kwargs)
    with xla_metadata.set_xla_metadata(inlineable="false"):
      return compiled(*args, **kwargs)

  return call


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

  def pull_back(variables, constants, gradient):
    # Else XLA sees that the forward pass has computed the same, and keeps it.
    variables, gradient = jax.lax.optimization_barrier((variables, gradient))
    return jax.vjp(lambda v: function(v, constants), variables)[1](gradient)[0]

  forward, backward = outlined(function), outlined(pull_back)
  result: Callable[..., R] = jax.custom_vjp(forward)
  result.defvjp(  # type: ignore[attr-defined]
    lambda variables, constants: (
      forward(variables, constants),
      (variables, constants),
    ),
    lambda kept, gradient: (backward(*kept, gradient), None),
  )
  return result
