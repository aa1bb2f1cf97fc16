"""What is known of a network's values, and what it multiplies, by its program.

A value may be known before any input is (a kernel, masked or normalised), may
be a variable as it is stored, and may be known not to be negative.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from asga_jax.network import counting, facts
from asga_jax.network import program as program_lib
from asga_jax.network.facts import Known

_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
# What jax.image multiplies by depends on sizes alone: runtimes interpolate.
_INTERPOLATIONS = ("_resize", "_scale_and_translate")


class Operand(NamedTuple):
  """An operand of a layer's product at one call."""

  known: Known
  shape: tuple[int, ...]
  # Whether the call lies in a loop, a branch or another transformation.
  nested: bool
  # Whether the call itself asks for a derivative by it.
  derived: bool


@dataclasses.dataclass
class Reading:
  """What a program multiplies."""

  # Path -> operands in call order, of layers.
  inputs: dict[str, list[Operand]] = dataclasses.field(default_factory=dict)
  kernels: dict[str, list[Operand]] = dataclasses.field(default_factory=dict)
  products: list[counting.Multiplication] = dataclasses.field(
    default_factory=list
  )
  # Variables that something else than a layer's product reads.
  foreign: set[str] = dataclasses.field(default_factory=set)

  def kernel(self, path: str) -> np.ndarray:
    """Compute the kernel that a layer multiplies by, masked or normalised.

    Args:
      path: of a layer that is not among `refusals`.
    """
    evaluate = self.kernels[path][0].known.evaluate
    assert evaluate is not None
    return np.asarray(evaluate())

  def is_nonnegative(self, path: str) -> bool:
    """Say whether no input of a layer can be negative."""
    return all(each.known.nonnegative for each in self.inputs[path])


def read(program: program_lib.Program) -> Reading:
  """Read a traced network.

  Args:
    program: from `program.trace`.

  Returns:
    Its products, in call order, and what is known of their operands.
  """
  reading = Reading()
  jaxpr = program.jaxpr
  variables = [
    Known(True, facts.holding(value), name, frozenset([name]))
    for name, value in zip(program.variables, program.values, strict=True)
  ]
  given = [Known() for _ in jaxpr.jaxpr.invars[len(variables) :]]
  walker = _Walker(reading)
  results = walker.walk(
    jaxpr.jaxpr, jaxpr.consts, [*variables, *given], _Place()
  )
  walker.note_reads(results)
  return reading


def refusals(traced: program_lib.Program, found: Reading) -> dict[str, str]:
  """Say why layers that are called cannot be searched.

  Args:
    traced: the network.
    found: what `read` gives for it.

  Returns:
    Path -> reason.
  """
  reasons = dict(traced.refused)
  for path, operands in found.inputs.items():
    if any(operand.derived for operand in operands):
      reasons.setdefault(
        path, "it is called within jax.grad, jax.jvp or another derivative"
      )
  for path, kernels in found.kernels.items():
    if not traced.outputs[path] or path in reasons:
      continue
    if not all(kernel.known.constant for kernel in kernels):
      reasons[path] = "its second operand depends on the input: it is no kernel"
    elif any(kernel.known.evaluate is None for kernel in kernels):
      reasons[path] = (
        "its kernel is one of a stack that nnx.scan or nnx.vmap steps through;"
        " a list of layers, called in a loop, would be searched"
      )
    elif len({kernel.shape for kernel in kernels}) > 1:
      reasons[path] = "its kernel has another shape at every call"
    elif _has_values(traced) and not _is_one_kernel(kernels):
      reasons[path] = (
        "its calls multiply by different kernels; a module of its own for each"
        " would be searched"
      )
  return reasons


def read_elsewhere(traced: program_lib.Program) -> set[str]:
  """List variables that more than the products of layers read.

  Codes stand for what is multiplied; a table that is also looked up, a kernel
  that the network's own code multiplies by, or one of a layer that cannot be
  searched, is read as it is.
  """
  found = read(traced)
  refused = refusals(traced, found)
  # By shapes alone, calls with different kernels are not among the refused.
  in_float = [
    operand.known.holds
    for path, operands in found.kernels.items()
    if path in refused or len({x.known.holds for x in operands}) > 1
    for operand in operands
  ]
  return found.foreign.union(*in_float)


def _has_values(traced: program_lib.Program) -> bool:
  """Say whether a network is more than shapes."""
  return not any(isinstance(x, jax.ShapeDtypeStruct) for x in traced.values)


def _is_one_kernel(kernels: Sequence[Operand]) -> bool:
  """Say whether all calls multiply by the same values."""
  sources = {kernel.known.source for kernel in kernels}
  if len(kernels) == 1 or (len(sources) == 1 and None not in sources):
    return True
  values = [kernel.known.evaluate() for kernel in kernels]  # type: ignore[misc]
  return all(np.array_equal(values[0], value) for value in values[1:])


class _Place(NamedTuple):
  """Where a jaxpr is called."""

  module: str = ""
  product: str = ""
  times: int = 1
  nested: bool = False
  recorded: bool = True


class _Walker:
  """Goes through a jaxpr and those within."""

  def __init__(self, reading: Reading):
    self.reading = reading

  def walk(
    self,
    jaxpr: Any,
    constants: Any,
    arguments: Sequence[Known],
    place: _Place,
  ) -> list[Known]:
    """Give what is known of the results, and list products on the way."""
    known: dict[Any, Known] = dict(zip(jaxpr.invars, arguments, strict=True))
    known.update(
      zip(jaxpr.constvars, map(facts.constant, constants), strict=True)
    )

    def of(variable: Any) -> Known:
      if isinstance(variable, core.Literal):
        return facts.constant(variable.val)
      return known[variable]

    for equation in jaxpr.eqns:
      values = [of(variable) for variable in equation.invars]
      inner = place._replace(
        module=program_lib.scope(equation, place.module),
        product=program_lib.scope(equation, place.product, program_lib.PRODUCT),
      )
      results = self.apply(equation, values, inner)
      known.update(zip(equation.outvars, results, strict=True))
    return [of(variable) for variable in jaxpr.outvars]

  def apply(
    self, equation: Any, values: list[Known], place: _Place
  ) -> Sequence[Known]:
    """Give what is known of an equation's results."""
    name, params = equation.primitive.name, equation.params
    nested = place._replace(nested=True)
    if name == "scan":
      return self.scan(params, values, nested)
    if name == "while":
      return self.loop(params, values, nested)
    if name == "cond":
      return self.cond(params, values, nested)
    body = next((params[key] for key in _BODIES if key in params), None)
    if body is not None:
      jaxpr = getattr(body, "jaxpr", body)
      if params.get("name") in _INTERPOLATIONS:
        nested = nested._replace(recorded=False)
      if len(jaxpr.invars) == len(values):
        inner = place if name.startswith("custom_") else nested
        return self.walk(jaxpr, getattr(body, "consts", ()), values, inner)
    if equation.primitive is program_lib.mark:
      return [self.operand(equation, values[0], place)]
    if not all(value.constant for value in values):
      self.note_reads(values)
    if name in ("dot_general", "conv_general_dilated"):
      self.multiply(equation, values, place)
    return facts.results(equation, values)

  def note_reads(self, values: Sequence[Known]) -> None:
    """Note the variables that are read other than by a layer's product."""
    foreign = [value.holds for value in values if not value.product]
    self.reading.foreign = self.reading.foreign.union(*foreign)

  def operand(self, equation: Any, known: Known, place: _Place) -> Known:
    """List an operand of a layer's product."""
    path, operand = equation.params["path"], equation.params["operand"]
    if operand == "activation":
      self.note_reads([known])
    if place.recorded:
      found = self.reading
      kind = found.inputs if operand == "activation" else found.kernels
      shape = tuple(equation.invars[0].aval.shape)
      nested = place.nested or equation.params.get("mapped", False)
      derived = equation.params.get("derived", False)
      kind.setdefault(path, []).append(Operand(known, shape, nested, derived))
    return dataclasses.replace(known, product=path)

  def multiply(self, equation: Any, values: list[Known], place: _Place) -> None:
    """List a product that depends on the input."""
    if not place.recorded or all(value.constant for value in values):
      return
    marked = [value.product for value in values if value.product]
    layer = place.product or (marked[0] if marked else "")
    shapes = tuple(tuple(v.aval.shape) for v in equation.invars)
    self.reading.products.append(
      counting.Multiplication(
        layer or place.module,
        bool(layer),
        equation.primitive.name,
        shapes,
        place.times * counting.count_macs(equation),
        place.times,
        equation,
      )
    )

  def cond(
    self, params: Any, values: list[Known], place: _Place
  ) -> list[Known]:
    """Go through all branches, of which one is taken."""
    products = self.reading.products
    listed, every = [], []
    for branch in params["branches"]:
      self.reading.products = []
      every.append(self.walk(branch.jaxpr, branch.consts, values[1:], place))
      listed.append(self.reading.products)
    self.reading.products = products + counting.of_one_branch(listed)
    results = []
    for each in zip(*every, strict=True):
      results.append(_merged(each, values[0]))
      if not results[-1].constant:
        self.note_reads(each)
    return results

  def scan(
    self, params: Any, values: list[Known], place: _Place
  ) -> list[Known]:
    """Go through the body until what it carries is settled, then list."""
    body = params["jaxpr"]
    fixed, carried = params["num_consts"], params["num_carry"]
    consts, rest = values[:fixed], values[fixed:]
    carry = rest[:carried]
    each = [facts.one_of(stack) for stack in rest[carried:]]
    trial = place._replace(recorded=False)
    for _ in range(len(carry) + 2):
      outs = self.walk(body.jaxpr, body.consts, [*consts, *carry, *each], trial)
      joined = [
        facts.joined(*pair) for pair in zip(carry, outs[:carried], strict=True)
      ]
      settled = all(
        facts.alike(*pair) for pair in zip(carry, joined, strict=True)
      )
      if settled:
        break
      carry = joined
    counted = place._replace(times=place.times * params["length"])
    outs = self.walk(body.jaxpr, body.consts, [*consts, *carry, *each], counted)
    for first, last in zip(rest[:carried], outs[:carried], strict=True):
      if first is not last:
        self.note_reads([first, last])
    self.note_reads([*rest[carried:], *outs[carried:]])
    return [
      *carry,
      *map(facts.one_of, outs[carried:]),
    ]

  def loop(
    self, params: Any, values: list[Known], place: _Place
  ) -> list[Known]:
    """Go through the body of a loop of unknown length, once."""
    body = params["body_jaxpr"]
    start = params["cond_nconsts"]
    consts = values[start : start + params["body_nconsts"]]
    carried = values[start + params["body_nconsts"] :]
    carry = [Known() for _ in carried]
    outs = self.walk(body.jaxpr, body.consts, [*consts, *carry], place)
    # The condition is not walked: what it is given may decide when it ends.
    self.note_reads([*values[:start], *carried, *outs])
    return carry


def _merged(branches: Sequence[Known], index: Known) -> Known:
  result = branches[0]
  if all(branch is result for branch in branches):
    return result
  for branch in branches[1:]:
    result = facts.joined(result, branch)
  constant = result.constant and index.constant
  return result if constant else dataclasses.replace(result, constant=False)
