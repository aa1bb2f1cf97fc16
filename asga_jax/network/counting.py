"""What a product of a traced program costs."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core


class Multiplication(NamedTuple):
  """A product that depends on the input."""

  path: str  # of the layer, or of the module that multiplies by itself
  layer: bool  # whether it is a layer's own product
  operation: str
  shapes: tuple[tuple[int, ...], ...]
  macs: int  # of all times
  times: int  # in a loop of known length, else 1
  equation: core.JaxprEqn


def of_one_branch(
  branches: Sequence[Sequence[Multiplication]],
) -> list[Multiplication]:
  """Give each layer's products, in the branch where it multiplies most.

  Args:
    branches: of a condition, of which one is taken; what each multiplies.

  Returns:
    Those of a layer, or a module, of one branch alone: what several layers cost
    together may be less than their sum, never more.
  """
  most: dict[tuple[str, bool], list[Multiplication]] = {}
  for branch in branches:
    found: dict[tuple[str, bool], list[Multiplication]] = {}
    for product in branch:
      found.setdefault((product.path, product.layer), []).append(product)
    for key, products in found.items():
      if key not in most or _total(products) > _total(most[key]):
        most[key] = products
  return [product for products in most.values() for product in products]


def _total(products: Sequence[Multiplication]) -> int:
  return sum(product.macs for product in products)


def count_macs(equation: Any) -> int:
  """Count the multiply-accumulates of a product.

  Args:
    equation: `dot_general` or `conv_general_dilated`.

  Returns:
    Of a convolution: elements of the kernel for each place at which it is
    applied, those of the output, or of the input where that is dilated
    (borders that are cut off count).
  """
  first, second = (variable.aval.shape for variable in equation.invars)
  (output,) = (variable.aval.shape for variable in equation.outvars)
  numbers = equation.params["dimension_numbers"]
  if equation.primitive.name == "dot_general":
    (summed, _), _ = numbers
    return math.prod(output) * math.prod(first[axis] for axis in summed)
  kernel = math.prod(second)
  if any(size > 1 for size in equation.params["lhs_dilation"]):
    return math.prod(first) // first[numbers.lhs_spec[1]] * kernel
  return math.prod(output) // output[numbers.out_spec[1]] * kernel
