"""Budgets: their text, what they allow, and the multiplier of the search."""

import dataclasses
import decimal
import fractions
import math
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import jax.typing

from asga_jax.cost import costs as costs_lib

_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES = {"B": 8, "KB": 8 * 10**3, "MB": 8 * 10**6, "GB": 8 * 10**9}
# Kind -> unit -> factor to the unit of the cost: BOPs, bits, ms.
_UNITS: Mapping[str, Mapping[str, int | fractions.Fraction]] = {
  "bops": _COUNTS,
  "size": _BYTES,
  "container_size": _BYTES,
  "latency": {"us": fractions.Fraction(1, 1000), "ms": 1, "s": 1000},
}
_CONSTRAINT = re.compile(
  r"\s*([A-Za-z_]\w*)\s*<?=\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|[A-Za-z]*)\s*",
  re.ASCII,
)
_FORMS = (
  "expected KIND=AMOUNT or KIND<=AMOUNT, several joined by commas, each kind"
  " once and each amount above 0: bops=4bit, bops=34.7G (K, M, G, T or a plain"
  " number), bops=2% (of the float32 network), size=6MB (B, KB, MB, GB),"
  " container_size=6MB, latency=3.1ms (us, ms, s), or the name of a cost of"
  " your own, such as energy=1.5M. Every kind also takes Nbit, N from 1 to 32,"
  " and N%."
)


class InfeasibleBudgetError(ValueError):
  """No choice of the candidate bits meets the budget."""


@dataclasses.dataclass(frozen=True)
class Constraint:
  """One upper limit, as the user wrote it; `unit` may be "bit" or "%"."""

  kind: str
  amount: decimal.Decimal
  unit: str

  def __str__(self):
    amount = f"{self.amount:f}"
    if "." in amount:
      amount = amount.rstrip("0").rstrip(".")
    return f"{self.kind}={amount}{self.unit}"


@dataclasses.dataclass(frozen=True)
class Budget:
  """Upper limits on several costs; all of them hold."""

  constraints: tuple[Constraint, ...]

  def __str__(self):
    return ",".join(map(str, self.constraints))


def parse_budget(text: str) -> Budget:
  """Read a budget such as "bops=4bit, size<=6MB".

  Returns:
    The budget; `str` of it is the canonical text, which reads as the same.

  Raises:
    ValueError: the text is malformed, or names a kind twice; the message holds
      the text and the accepted forms.
  """
  if not isinstance(text, str):
    raise ValueError(f"budget {repr(text)[:80]}: no text; {_FORMS}")
  constraints: list[Constraint] = []
  for part in text.split(","):
    match = _CONSTRAINT.fullmatch(part)
    if not match:
      raise ValueError(
        f"budget {repr(text)[:80]}: cannot read {repr(part)[:80]}; {_FORMS}"
      )
    kind, amount, unit = match.groups()
    amount = decimal.Decimal(amount)
    unit = {"bits": "bit", "k": "K", "kB": "KB"}.get(unit, unit)
    wide = unit != "bit" or 1 <= amount <= 32
    known = unit in ("bit", "%") or unit in _UNITS.get(kind, _COUNTS)
    if not known or not wide or amount == 0:
      raise ValueError(
        f"budget {text!r}: {part.strip()!r} has not an amount of {kind!r};"
        f" {_FORMS}"
      )
    if any(kind == other.kind for other in constraints):
      raise ValueError(f"budget {text!r}: {kind!r} occurs twice; {_FORMS}")
    constraints.append(Constraint(kind, amount, unit))
  return Budget(tuple(constraints))


def check_kinds(budget: Budget, costs: Sequence[costs_lib.Cost]) -> None:
  """Check that every kind of a budget is a cost that is known.

  Raises:
    ValueError: a kind without a cost, or two costs of one name.
  """
  known = costs_lib.by_name(costs)
  for constraint in budget.constraints:
    if constraint.kind not in known:
      supply = (
        "a latency budget needs a latency table: --config.latency_table=FILE of"
        " a search, --latency_table=FILE of an export (launch/latency.py"
        " measures one), costs=[asga_jax.load_latency(FILE)] in Python"
        if constraint.kind == "latency"
        else f"expected one of these, or a Cost named {constraint.kind!r}"
      )
      raise ValueError(
        f"budget {str(constraint)!r}: no such cost among those supplied,"
        f" {sorted(known)}: {supply}."
      )


def resolve(
  budget: Budget,
  network: costs_lib.NetworkStats,
  choices: costs_lib.Choices,
  costs: Sequence[costs_lib.Cost],
) -> dict[str, costs_lib.Number]:
  """Turn a budget into absolute limits for one network.

  N bits are the cost with every searched layer at N and N, interpolated where N
  is not whole, and fixed layers at their own bits; a percentage is of the
  network with every layer in float32.

  Args:
    budget: the budget.
    network: the deployed network.
    choices: candidates of every layer.
    costs: at least those that the budget names.

  Returns:
    Name of the cost -> limit, in BOPs, bits (size), ms (latency), or the unit
    of the user's cost.

  Raises:
    ValueError: a kind without a cost, two costs of one name, or a limit of 0.
  """
  check_kinds(budget, costs)
  known = costs_lib.by_name(costs)
  limits = {}
  for constraint in budget.constraints:
    cost = known[constraint.kind]
    amount = fractions.Fraction(constraint.amount)
    limit: costs_lib.Number | fractions.Fraction
    if constraint.unit == "bit":
      try:
        limit = _cost_of_bits(network, choices, amount, cost)
      except ValueError as error:
        raise ValueError(f"budget {str(constraint)!r}: {error}") from error
    elif constraint.unit == "%":
      whole = fractions.Fraction(repr(costs_lib.float_cost(network, cost)))
      limit = whole * amount / 100
    else:
      units = _UNITS.get(constraint.kind, _COUNTS)
      limit = amount * units[constraint.unit]
    if isinstance(limit, fractions.Fraction):
      limit = int(limit) if limit.denominator == 1 else float(limit)
    if limit <= 0:
      raise ValueError(
        f"budget {str(constraint)!r} resolves to {limit}: expected a limit"
        " above 0."
      )
    limits[constraint.kind] = limit
  return limits


def _cost_of_bits(
  network: costs_lib.NetworkStats,
  choices: costs_lib.Choices,
  bits: fractions.Fraction,
  cost: costs_lib.Cost,
) -> fractions.Fraction:
  """Sum a cost over a network with every searched layer at N and N bits.

  Between whole bits it is interpolated, in weight and in input bits: 2.5 bits
  are 6.25 BOPs a MAC.
  """
  low = math.floor(bits)
  share = bits - low
  shares = {low: 1 - share} | ({low + 1: share} if share else {})
  total = fractions.Fraction(0)
  for width, of_weights in shares.items():
    for other, of_inputs in shares.items():
      widths = costs_lib.uniform_bits(network, choices, width, other)
      whole = costs_lib.total_cost(network, widths, cost)
      total += of_weights * of_inputs * fractions.Fraction(repr(whole))
  return total


def budget_used(
  costs: Mapping[str, costs_lib.Number], limits: Mapping[str, costs_lib.Number]
) -> float:
  """Compute the largest share cost / limit over the limits."""
  return max(costs[name] / limit for name, limit in limits.items())


def penalty(
  multiplier: jax.typing.ArrayLike, use: jax.typing.ArrayLike
) -> jax.Array:
  """Compute what a search adds to its loss: sum of μ (use - 1).

  Args:
    multiplier: μ, shape [] or [budgets].
    use: expected cost / limit, the same shape.

  Returns:
    The penalty, shape [].
  """
  return jnp.sum(jnp.asarray(multiplier) * (jnp.asarray(use) - 1))


def update_multiplier(
  multiplier: jax.typing.ArrayLike,
  use: jax.typing.ArrayLike,
  *,
  rate: float,
) -> jax.Array:
  """Compute μ ← max(0, μ + rate (use - 1)): it rises and falls with the use.

  Projected dual ascent on the constraint use <= 1.

  Args:
    multiplier: μ, shape [] or [budgets].
    use: expected cost / limit, the same shape.
    rate: η > 0.

  Returns:
    The next μ, of the shape and dtype of μ.
  """
  excess = jnp.asarray(use) - 1
  return jnp.maximum(0, jnp.asarray(multiplier) + rate * excess)
