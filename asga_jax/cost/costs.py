"""Costs of a policy: bit operations, packed or stored size, the user's."""

import dataclasses
import enum
import fractions
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from asga_jax import checks
from asga_jax import policy as policy_lib

Bits = Mapping[str, tuple[int, int]]
Choices = Mapping[str, policy_lib.LayerChoice]
Number = int | float


class BopsConvention(enum.StrEnum):
  """Which layers a figure of bit operations counts, and at which bits."""

  ALL_LAYERS_FIXED_AT_OWN_BITS = enum.auto()
  ALL_LAYERS_AT_SEARCHED_BITS = enum.auto()
  SEARCHED_LAYERS_ONLY = enum.auto()


@dataclasses.dataclass(frozen=True)
class LayerStats:
  """One layer of the deployed network: MACs per image, number of weights."""

  path: str
  macs: int
  weights: int


@dataclasses.dataclass(frozen=True)
class NetworkStats:
  """The layers in the order of the calls, and what stays float32 beside them.

  Raises:
    ValueError: no layers, a path that occurs twice, or negative counts.
  """

  layers: tuple[LayerStats, ...]
  float_parameters: int
  # What modules multiply beside the layers, in float32.
  float_layers: tuple[LayerStats, ...] = ()

  def __post_init__(self):
    paths = self.paths
    if not paths or len(set(paths)) < len(paths):
      raise ValueError(
        f"layers = {list(paths)}: expected one or more, each path once."
      )
    if self.float_parameters < 0:
      raise ValueError(
        f"float_parameters = {self.float_parameters}: expected >= 0."
      )
    for layer in (*self.layers, *self.float_layers):
      if layer.macs < 0 or layer.weights < 0:
        raise ValueError(f"{layer}: expected macs and weights >= 0.")

  @property
  def paths(self) -> tuple[str, ...]:
    """Paths of the layers, in the order of the calls."""
    return tuple(layer.path for layer in self.layers)


@dataclasses.dataclass(frozen=True)
class Cost:
  """A cost of a network: a sum over its layers and a constant.

  `layer_cost(layer, weight_bits, activation_bits)` and `constant(network)`
  return a number >= 0; integers are summed exactly. `check(network, choices)`
  raises ValueError where the cost does not fit, before anything is computed.
  """

  name: str
  layer_cost: Callable[[LayerStats, int, int], Number]
  constant: Callable[[NetworkStats], Number] = lambda network: 0
  check: Callable[[NetworkStats, Choices], None] = lambda network, choices: None

  def __post_init__(self):
    checks.text("name", self.name, "the name of the cost")
    for name in ("layer_cost", "constant", "check"):
      checks.function(name, getattr(self, name))


# Bit operations for one image: MACs times both bit-widths.
BOPS = Cost(
  "bops",
  lambda layer, bw, ba: layer.macs * bw * ba,
  lambda network: 32 * 32 * sum(layer.macs for layer in network.float_layers),
)
# Bits of packed weights, and of what stays float32.
SIZE = Cost(
  "size",
  lambda layer, bw, ba: layer.weights * bw,
  lambda network: 32 * network.float_parameters,
)


def container_cost(
  containers: Sequence[int] = (2, 4, 8, 16, 32),
) -> Cost:
  """Make the cost of weights that a format stores in containers, in bits.

  Args:
    containers: the widths, in bits, that the format has. The weights of a
      layer go to the narrowest that holds them.

  Returns:
    The cost "container_size". It raises ValueError for bits above the widest.

  Raises:
    ValueError: no containers, or one that is no integer above 0.
  """
  given = containers if isinstance(containers, list | tuple) else ()
  if not given or not all(type(w) is int and w > 0 for w in given):
    raise checks.refusal(
      "containers", containers, "one or more integers above 0"
    )
  widths = sorted(given)

  def layer_cost(layer: LayerStats, bw: int, ba: int) -> Number:
    for width in widths:
      if width >= bw:
        return layer.weights * width
    raise ValueError(
      f"containers = {containers!r}: none holds the {bw}-bit weights of layer"
      f" {layer.path!r}; expected one of {bw} bits or more."
    )

  return Cost("container_size", layer_cost, SIZE.constant)


CONTAINER_SIZE = container_cost()


def by_name(costs: Iterable[Cost]) -> dict[str, Cost]:
  """Key costs by their names.

  Raises:
    ValueError: two costs have the same name.
  """
  result: dict[str, Cost] = {}
  for cost in costs:
    if cost.name in result:
      raise ValueError(f"two costs are named {cost.name!r}: expected one.")
    result[cost.name] = cost
  return result


def check_choices(network: NetworkStats, choices: Choices) -> None:
  """Check the candidates against the network and the groups.

  Raises:
    ValueError: layers without choices or choices without layers; a group whose
      members have different candidates; a group named as another layer.
  """
  _check_paths("choices", network, choices)
  for kind in ("weight", "activation"):
    first: dict[str, str] = {}
    for path in network.paths:
      group = getattr(choices[path], f"{kind}_group")
      if group in choices and getattr(choices[group], f"{kind}_group") != group:
        raise ValueError(
          f"{kind}_group = {group!r} of layer {path!r} is the path of a layer"
          " outside the group: expected another name."
        )
      if not group:
        continue
      other = first.setdefault(group, path)
      bits = [getattr(choices[p], f"{kind}_bits") for p in (other, path)]
      if bits[0] != bits[1]:
        raise ValueError(
          f"{kind}_group {group!r}: layer {other!r} has the candidates"
          f" {bits[0]} and layer {path!r} {bits[1]}: expected equal ones."
        )


def cost_tables(
  network: NetworkStats, choices: Choices, cost: Cost
) -> tuple[dict[str, np.ndarray], Number]:
  """Tabulate a cost over the candidates of every layer.

  Returns:
    Path -> table of shape [weight candidates, activation candidates], int64
    if the layer's costs are integers and float64 otherwise; and the constant.

  Raises:
    ValueError: choices or a cost that do not fit the network, or a cost that
      is not a finite number >= 0.
  """
  check_choices(network, choices)
  cost.check(network, choices)
  tables = {}
  for layer in network.layers:
    choice = choices[layer.path]
    rows = [
      [_layer_cost(cost, layer, bw, ba) for ba in choice.activation_bits]
      for bw in choice.weight_bits
    ]
    tables[layer.path] = np.array(rows)
  return tables, _number(cost.constant(network), f"cost {cost.name!r}")


def total_cost(network: NetworkStats, bits: Bits, cost: Cost) -> Number:
  """Sum a cost over a network whose layers have the given bits.

  Args:
    network: the network.
    bits: path -> (weight bits, activation bits), for every layer.
    cost: the cost.

  Returns:
    An exact integer if the cost is one everywhere, otherwise the float
    nearest to the exact sum of the decimals.

  Raises:
    ValueError: layers that lack bits, bits without a layer, or a cost that is
      not a finite number >= 0.
  """
  _check_paths("bits", network, bits)
  terms = [_layer_cost(cost, x, *bits[x.path]) for x in network.layers]
  terms.append(_number(cost.constant(network), f"cost {cost.name!r}"))
  if all(isinstance(term, int) for term in terms):
    return sum(terms)
  # 0.1 + 0.2 is to equal a limit of 0.3, whatever the order of the layers.
  return float(sum(fractions.Fraction(repr(term)) for term in terms))


def uniform_bits(
  network: NetworkStats,
  choices: Choices,
  weight_bits: int,
  activation_bits: int | None = None,
) -> dict[str, tuple[int, int]]:
  """Give every searched layer the same bits; fixed layers keep their own.

  Args:
    network: its layers.
    choices: which are searched.
    weight_bits: of all of them.
    activation_bits: None for the same.
  """
  check_choices(network, choices)
  of_inputs = weight_bits if activation_bits is None else activation_bits
  result = {}
  for path in network.paths:
    choice = choices[path]
    own = (choice.weight_bits[0], choice.activation_bits[0])
    result[path] = (weight_bits, of_inputs) if choice.searched else own
  return result


def float_cost(network: NetworkStats, cost: Cost) -> Number:
  """Sum a cost over the network with every layer in float32."""
  return total_cost(network, dict.fromkeys(network.paths, (32, 32)), cost)


def relative_tables(
  tables: Mapping[str, np.ndarray], constant: Number, limit: Number
) -> tuple[dict[str, np.ndarray], float]:
  """Divide tables and constant by a limit, in float64.

  With these an expected cost is the share of the budget that is used, and no
  figure in it is too large for float32.
  """
  return (
    {path: np.asarray(x, np.float64) / limit for path, x in tables.items()},
    float(constant) / limit,
  )


def uniform_bops(
  network: NetworkStats,
  choices: Choices,
  bits: int,
  *,
  convention: BopsConvention,
) -> int:
  """Count the bit operations of uniform bits under a convention."""
  assigned = uniform_bits(network, choices, bits)
  counted = network.layers
  match BopsConvention(convention):
    case BopsConvention.ALL_LAYERS_AT_SEARCHED_BITS:
      assigned = dict.fromkeys(assigned, (bits, bits))
    case BopsConvention.SEARCHED_LAYERS_ONLY:
      counted = tuple(x for x in counted if choices[x.path].searched)
  return sum(int(BOPS.layer_cost(x, *assigned[x.path])) for x in counted)


def format_uniform_bops(
  network: NetworkStats, choices: Choices, bits: int
) -> str:
  """Lay out `uniform_bops` under all conventions, one line each."""
  lines = []
  for convention in BopsConvention:
    bops = uniform_bops(network, choices, bits, convention=convention)
    lines.append(
      f"uniform {bits} bits: {format_amount('bops', bops)} ({convention})"
    )
  return "\n".join(lines)


def format_amount(name: str, amount: Number) -> str:
  """Write an amount of a cost with its unit, such as "34.71 GBOPs"."""
  if name == "latency":
    return f"{amount:.6g} ms"
  unit = {"bops": "BOPs", "size": "B", "container_size": "B"}.get(name, "")
  amount = amount / 8 if unit == "B" else amount
  for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
    if amount >= scale:
      return f"{amount / scale:.6g} {prefix}{unit}"
  return f"{amount:.6g} {unit}".rstrip()


def _check_paths(
  name: str, network: NetworkStats, given: Iterable[str]
) -> None:
  missing = sorted(set(network.paths) - set(given))
  extra = sorted(set(given) - set(network.paths))
  if missing or extra:
    raise ValueError(
      f"{name} must name exactly the layers of the network: it lacks"
      f" {missing}, and {extra} are no layers."
    )


def _layer_cost(cost: Cost, layer: LayerStats, bw: int, ba: int) -> Number:
  what = f"cost {cost.name!r} of layer {layer.path!r} at {(bw, ba)} bits"
  try:
    value = cost.layer_cost(layer, bw, ba)
  except (LookupError, TypeError) as error:
    raise ValueError(
      f"{what} is missing: its function raised"
      f" {type(error).__name__}: {error}; expected a number for every pair of a"
      " layer's candidates."
    ) from error
  return _number(value, what)


def _number(value: object, what: str) -> Number:
  if isinstance(value, numbers.Real) and math.isfinite(value):
    exact = int(value) if isinstance(value, numbers.Integral) else float(value)
    if exact >= 0:
      return exact
  raise ValueError(f"{what} is {value!r}: expected a finite number >= 0.")
