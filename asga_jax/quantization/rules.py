"""Which layers are searched, over which bits, and which share theirs."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

from asga_jax import checks
from asga_jax.quantization import quantizers

TIES = ("weights", "activations", "both")


@dataclasses.dataclass(frozen=True)
class Rule:
  """What holds for the layers whose whole path a pattern matches.

  One bit-width fixes a tensor, several are searched, None leaves the default.
  A rule of a pattern alone keeps its layers from later rules.
  """

  # A regular expression over the whole path, e.g. 'stages/0/.*'.
  pattern: str
  # Candidates for the kernel, each in 2..8, or 32 for float.
  weight_bits: int | tuple[int, ...] | None = None
  # Candidates for the input, likewise.
  activation_bits: int | tuple[int, ...] | None = None
  # What the matching layers share: 'weights', 'activations', 'both' or None.
  tie: str | None = None
  # Whether the input may be negative; None as the example shows it.
  signed: bool | None = None
  # Match the pattern against the products of attention, '.../attention_fn/qk'
  # and '.../attention_fn/pv', instead of layers. Only products that such a
  # rule matches are quantized and counted; `weight_bits` are then those of the
  # second operand, the keys or the values.
  products: bool = False

  def __post_init__(self):
    try:
      if isinstance(self.pattern, bytes):
        raise TypeError("it is no str")
      re.compile(self.pattern)
    except (re.error, TypeError) as error:
      raise ValueError(
        f"rule pattern {checks.short(self.pattern)}: {error}; expected a"
        " regular expression."
      ) from None
    for name in ("weight_bits", "activation_bits"):
      value = getattr(self, name)
      if value is not None:
        checked = quantizers.check_bits(value, f"{name} of rule {self.pattern}")
        object.__setattr__(self, name, checked)
    rule = f"rule {self.pattern!r}:"
    if self.signed is not None:
      checks.flag(f"{rule} signed", self.signed)
    checks.flag(f"{rule} products", self.products)
    if self.tie is not None:
      checks.choice(f"{rule} tie", self.tie, TIES)


@dataclasses.dataclass(frozen=True)
class LayerRule:
  """What was decided for one layer."""

  weight_bits: tuple[int, ...]
  activation_bits: tuple[int, ...]
  # Layers with the same name here share the bits of that tensor.
  weight_tie: str | None = None
  activation_tie: str | None = None
  # The number of the rule that decided, None for the defaults.
  rule: int | None = None
  # Whether the input may be negative; None as the example shows it.
  signed: bool | None = None


def check_rules(rules: Sequence[Rule]) -> None:
  """Check that rules are a list of them; raises ValueError otherwise."""
  listed = isinstance(rules, list | tuple)
  wrong = (
    [rule for rule in rules if not isinstance(rule, Rule)] if listed else 1
  )
  if wrong:
    raise ValueError(
      f"rules={checks.short(rules)}; expected a list of asga_jax.Rule, such"
      " as [asga_jax.Rule('head', weight_bits=8)]."
    )


def resolve(
  rules: Sequence[Rule],
  paths: Sequence[str],
  *,
  bits: tuple[int, ...],
  end_bits: int,
  products: Sequence[str] = (),
  readers: Mapping[str, str] | None = None,
) -> dict[str, LayerRule]:
  """Decide for every layer by the first rule that matches it.

  Args:
    rules: in order; the first whose pattern matches the whole path decides.
    paths: the layers in call order. The first and the last are fixed at
      `end_bits` where no rule gives them bits or ties them.
    bits: the candidates where nothing else is said.
    end_bits: the bits of the first and the last layer.
    products: those of attention, in call order; for rules with `products`.
    readers: path -> a name for the tensor that it reads. Layers that read the
      same one, are searched over the same candidates and are not tied by a rule
      share their activation bits. None: none do.

  Returns:
    What holds for each path, and for each product that a rule matches.

  Raises:
    ValueError: a rule that matches no layer, or none that an earlier rule has
      left to it; bad candidates.
  """
  bits = quantizers.check_bits(bits, "bits")
  ends = quantizers.check_bits(end_bits, "end_bits")
  decided: dict[str, LayerRule] = {}
  for index, rule in enumerate(rules):
    for path in _left(
      index, rule, products if rule.products else paths, decided
    ):
      default = ends if path in (paths[0], paths[-1]) else bits
      tie = f"rule {index}"
      tied_weights = rule.tie in ("weights", "both")
      tied_activations = rule.tie in ("activations", "both")
      decided[path] = LayerRule(
        rule.weight_bits or (bits if tied_weights else default),  # type: ignore[arg-type]
        rule.activation_bits or (bits if tied_activations else default),  # type: ignore[arg-type]
        tie if tied_weights else None,
        tie if tied_activations else None,
        index,
        rule.signed,
      )
  for path in paths:
    if path not in decided:
      fixed = path in (paths[0], paths[-1])
      decided[path] = LayerRule(*((ends, ends) if fixed else (bits, bits)))
  order = [path for path in (*paths, *products) if path in decided]
  decided = {path: decided[path] for path in order}
  return decided if readers is None else _tie_readers(decided, readers)


def _left(
  index: int, rule: Rule, paths: Sequence[str], decided: Collection[str]
) -> list[str]:
  """List what a rule decides for; raises ValueError for nothing."""
  kind = "product of attention" if rule.products else "layer"
  matched = [path for path in paths if re.fullmatch(rule.pattern, path)]
  if not matched:
    known = ", ".join(paths) or "none"
    raise ValueError(
      f"rule {index} ({rule.pattern!r}) matches no {kind}; there are: {known}."
    )
  left = [path for path in matched if path not in decided]
  if not left:
    raise ValueError(
      f"rule {index} ({rule.pattern!r}) is shadowed: earlier rules decide "
      f"for all that it matches ({', '.join(matched)})."
    )
  return left


def _tie_readers(
  decided: Mapping[str, LayerRule], readers: Mapping[str, str]
) -> dict[str, LayerRule]:
  """Tie the activations of layers that read the same tensor."""
  alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
  for path, layer in decided.items():
    if layer.activation_tie is None and len(layer.activation_bits) > 1:
      key = (readers[path], layer.activation_bits)
      alike.setdefault(key, []).append(path)
  result = dict(decided)
  for (reader, _), paths in alike.items():
    for path in paths if len(paths) > 1 else ():
      result[path] = dataclasses.replace(
        decided[path], activation_tie=f"input of {reader}"
      )
  return result


def describe(
  rules: Sequence[Rule], decided: Mapping[str, LayerRule]
) -> tuple[tuple[str, str, str, str], ...]:
  """Say of every layer what decided and ties it, but not its bits.

  Args:
    rules: as handed to `resolve`.
    decided: what it returned.

  Returns:
    (path, rule, what the weights are tied by, what the activations are).
  """

  def name(index: int | None) -> str:
    if index is None:
      return "default"
    return f"rule {index} {rules[index].pattern!r}"

  return tuple(
    (path, name(x.rule), x.weight_tie or "", x.activation_tie or "")
    for path, x in decided.items()
  )
