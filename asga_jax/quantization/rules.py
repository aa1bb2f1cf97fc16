"""Which layers are searched, over which bits, and which share theirs."""

import dataclasses
import re
from collections.abc import Sequence

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

  def __post_init__(self):
    try:
      re.compile(self.pattern)
    except (re.error, TypeError) as error:
      raise ValueError(
        f"rule pattern {self.pattern!r} is not a regular expression: {error}."
      ) from None
    for name in ("weight_bits", "activation_bits"):
      value = getattr(self, name)
      if value is not None:
        checked = quantizers.check_bits(value, f"{name} of rule {self.pattern}")
        object.__setattr__(self, name, checked)
    if self.tie is not None and self.tie not in TIES:
      raise ValueError(
        f"tie of rule {self.pattern} is {self.tie!r}; expected one of {TIES} "
        "or None."
      )


@dataclasses.dataclass(frozen=True)
class LayerRule:
  """What was decided for one layer."""

  weight_bits: tuple[int, ...]
  activation_bits: tuple[int, ...]
  # Layers with the same name here share the bits of that tensor.
  weight_tie: str | None = None
  activation_tie: str | None = None


def resolve(
  rules: Sequence[Rule],
  paths: Sequence[str],
  *,
  bits: tuple[int, ...],
  end_bits: int,
) -> dict[str, LayerRule]:
  """Decide for every layer by the first rule that matches it.

  Args:
    rules: in order; the first whose pattern matches the whole path decides.
    paths: the layers in call order. The first and the last are fixed at
      `end_bits` where no rule gives them bits or ties them.
    bits: the candidates where nothing else is said.
    end_bits: the bits of the first and the last layer.

  Returns:
    What holds for each path.

  Raises:
    ValueError: a rule that matches no layer, or none that an earlier rule has
      left to it; bad candidates.
  """
  bits = quantizers.check_bits(bits, "bits")
  ends = quantizers.check_bits(end_bits, "end_bits")
  decided: dict[str, LayerRule] = {}
  for index, rule in enumerate(rules):
    matched = [path for path in paths if re.fullmatch(rule.pattern, path)]
    if not matched:
      raise ValueError(
        f"rule {index} ({rule.pattern!r}) matches no layer; the layers are "
        f"{', '.join(paths)}."
      )
    left = [path for path in matched if path not in decided]
    if not left:
      raise ValueError(
        f"rule {index} ({rule.pattern!r}) is shadowed: earlier rules decide "
        f"for all that it matches ({', '.join(matched)})."
      )
    for path in left:
      default = ends if path in (paths[0], paths[-1]) else bits
      tie = f"rule {index}"
      tied_weights = rule.tie in ("weights", "both")
      tied_activations = rule.tie in ("activations", "both")
      decided[path] = LayerRule(
        rule.weight_bits or (bits if tied_weights else default),  # type: ignore[arg-type]
        rule.activation_bits or (bits if tied_activations else default),  # type: ignore[arg-type]
        tie if tied_weights else None,
        tie if tied_activations else None,
      )
  for path in paths:
    if path not in decided:
      fixed = path in (paths[0], paths[-1])
      decided[path] = LayerRule(*((ends, ends) if fixed else (bits, bits)))
  return {path: decided[path] for path in paths}
