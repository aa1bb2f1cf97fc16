"""From any network to a searchable one, and on to one fixed by a policy."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from asga_jax import checks
from asga_jax.network import attention, examples, program
from asga_jax.network import kinds as layer_kinds
from asga_jax.quantization import (
  bit_choice,
  calibration,
  layers,
  methods,
  quantizers,
)
from asga_jax.quantization import (
  rules as rules_lib,
)
from asga_jax.xla import promotion

DEFAULT_BITS = (2, 3, 4, 5, 6, 8)
END_BITS = 8


def make_quantizers(
  weight_quantizer: str, activation_quantizer: str, per_channel: bool
) -> tuple[quantizers.Quantizer, quantizers.Quantizer]:
  """Make the quantizers of weights and of activations by their names.

  Raises:
    ValueError: an unknown quantizer, or `per_channel` is no switch.
  """
  return (
    methods.make_quantizer(
      weight_quantizer, weights=True, per_channel=per_channel
    ),
    methods.make_quantizer(
      activation_quantizer, weights=False, per_channel=False
    ),
  )


@promotion.usual()
def make_searchable(
  model: nnx.Module,
  example_input: Any,
  *,
  bits: tuple[int, ...] = DEFAULT_BITS,
  rules: Sequence[rules_lib.Rule] = (),
  end_bits: int = END_BITS,
  weight_quantizer: str = "lsq",
  activation_quantizer: str = "lsq_plus",
  per_channel: bool = True,
  tie_shared_inputs: bool = False,
  batches: Iterable[Any] = (),
  method: str = "__call__",
  note: Callable[[calibration.Samples], None] | None = None,
) -> nnx.Module:
  """Give every layer of a network that multiplies by a kernel a choice of bits.

  Layers that share their kernel share the choice of its bits and its steps.

  Args:
    model: any Flax NNX module with layers that call their product by one of
      `kinds.ATTRIBUTES`; neither it nor its variables are changed.
    example_input: a batch of inputs, see `examples.as_example`; real ones give
      better initial ranges. Of `jax.ShapeDtypeStruct` no ranges come: these are
      set later, by `calibration.calibrate` or from a checkpoint.
    bits: the candidates of every searched tensor.
    rules: exceptions, see `rules.Rule`.
    end_bits: the bits of the first and the last layer called, not searched.
    weight_quantizer: one of `methods.QUANTIZERS`.
    activation_quantizer: one of `methods.QUANTIZERS`.
    per_channel: whether each output channel of a kernel has its own step.
    tie_shared_inputs: whether searched layers that read the same tensor share
      their activation bits, where no rule ties these.
    batches: more inputs that ranges come from.
    method: the method that is called on inputs.
    note: told of the statistics and the traced program.

  Returns:
    A copy with the same classes and paths for all that the model had. Its
    attributes: `decided_by` is what `rules.describe` gives, `example` the
    shapes of the example, `refused_calls` why layers that are called cannot be
    searched.

  Raises:
    ValueError: bad bits or rules, an unknown quantizer, an example that the
      model cannot be run on, a model without layers, or one that is searchable
      already.
  """
  rules_lib.check_rules(rules)
  checks.flag("tie_shared_inputs", tie_shared_inputs)
  quantizers.check_bits(bits, "bits")
  quantizers.check_bits(end_bits, "end_bits")
  of_weights, of_activations = make_quantizers(
    weight_quantizer, activation_quantizer, per_channel
  )
  if isinstance(model, nnx.Module) and layers.quantized_layers(model):
    raise ValueError(
      f"model ({type(model).__name__}) has quantized layers already; expected "
      "the float network."
    )
  example = examples.as_example(example_input)
  samples = calibration.gather(model, example, batches=batches, method=method)
  if note is not None:
    note(samples)
  products = tuple(samples.seconds)
  paths = tuple(path for path in samples.inputs if path not in products)
  if not paths:
    refused = [f" {path}: {why};" for path, why in samples.refused.items()]
    raise ValueError(
      f"model ({type(model).__name__}) calls no layer that can be searched;"
      f"{''.join(refused[:3])} expected one of {layer_kinds.NAMES}."
    )
  decided = rules_lib.resolve(
    rules,
    paths,
    bits=bits,
    end_bits=end_bits,
    products=products,
    readers=samples.program.readers if tie_shared_inputs else None,
  )
  copy: Any = layer_kinds.with_products(model)
  choices = _Choices(samples, decided, example.is_blank)
  callers = program.find_callers(copy)
  variables = {
    id(variable): program.path_name(keys)
    for keys, variable in nnx.iter_graph(copy)
    if isinstance(variable, nnx.Variable)
  }
  for path in decided:
    layer, attribute = callers[path]
    outputs = samples.program.outputs[path]
    sources = {k.known.source for k in samples.reading.kernels[path]}
    stored = None
    if outputs and len(sources) == 1:
      stored = _attribute_holding(layer, sources.pop(), variables)
    weight, activation = (
      choices.weight(path, outputs, of_weights)
      if outputs
      else choices.second(path, of_activations),
      choices.activation(path, of_activations),
    )
    made = layers.QuantizedProduct(
      layer_kinds.get_product(layer, attribute),
      attribute=attribute,
      outputs=outputs,
      stored=stored,
      weight=weight,
      activation=activation,
      signed=decided[path].signed,
      watched=choices.is_in_doubt(path),
    )
    setattr(layer, attribute, nnx.data(made))
  attention.hide_products(copy)
  # Without the bits, so that these stay data and never recompile.
  copy.decided_by = nnx.static(rules_lib.describe(rules, decided))
  copy.example = nnx.static((example.shapes(), method))
  copy.refused_calls = nnx.static(tuple(samples.refused.items()))
  return copy  # type: ignore[no-any-return]


def _attribute_holding(
  layer: Any, source: str | None, variables: Mapping[int, str]
) -> str | None:
  """Name the attribute of a layer that is the variable of a path."""
  for name, value in vars(layer).items():
    if isinstance(value, nnx.Variable) and variables[id(value)] == source:
      return name
  return None


class _Choices:
  """Makes the choices of a network's tensors, tied ones once."""

  def __init__(
    self,
    samples: calibration.Samples,
    decided: Mapping[str, rules_lib.LayerRule],
    blank: bool,
  ):
    self._samples, self._decided, self._blank = samples, decided, blank
    self._temperature = bit_choice.Temperature(jnp.ones(()))
    self._ties: dict[tuple[str, str], bit_choice.BitLogits] = {}
    self._kernels: dict[Any, tuple[str, bit_choice.BitChoice]] = {}

  def weight(
    self, path: str, outputs: tuple[int, ...], quantizer: quantizers.Quantizer
  ) -> bit_choice.BitChoice:
    """Make the choice of a kernel, or give that of a layer which shares it."""
    rule = self._decided[path]
    source = self._samples.reading.kernels[path][0].known.source
    if source is not None and (source, outputs) in self._kernels:
      first, choice = self._kernels[source, outputs]
      told = f"{first!r} and {path!r} share the kernel {source!r}"
      logging.info("%s: one choice of bits", told)
      if choice.candidates() != rule.weight_bits:
        logging.warning(
          "%s, so its candidates are those of the first, %s; not %s",
          told,
          choice.candidates(),
          rule.weight_bits,
        )
      return choice
    matrix = layer_kinds.to_matrix(self._samples.kernel(path), outputs)
    if not (self._blank or np.isfinite(matrix).all()):
      raise ValueError(
        f"layer {path!r} has a kernel that is not finite; expected finite"
        " weights, from which ranges are taken."
      )
    if self._blank:
      matrix = matrix[:1]  # Shapes are all that is wanted now.
    choice = self._make(
      "weight",
      rule.weight_tie,
      rule.weight_bits,
      calibration.weight_sample(matrix, quantizer),
      quantizer,
      True,
    )
    if source is not None:
      self._kernels[source, outputs] = path, choice
    return choice

  def second(
    self, path: str, quantizer: quantizers.Quantizer
  ) -> bit_choice.BitChoice:
    """Make the choice of the second operand of a product of activations."""
    rule, sample = self._decided[path], self._samples.seconds[path]
    return self._make(
      "weight",
      rule.weight_tie,
      rule.weight_bits,
      sample,
      quantizer,
      sample.signed,
    )

  def activation(
    self, path: str, quantizer: quantizers.Quantizer
  ) -> bit_choice.BitChoice:
    """Make the choice of a layer's input."""
    rule, sample = self._decided[path], self._samples.inputs[path]
    proven = self._samples.reading.is_nonnegative(path)
    signed = (
      self._samples.is_signed(path) if rule.signed is None else rule.signed
    )
    if quantizer.learns_zero and (proven or rule.signed is not None):
      # Nothing is to be learned of its zero point.
      quantizer = methods.LSQ()
    return self._make(
      "activation",
      rule.activation_tie,
      rule.activation_bits,
      sample,
      quantizer,
      signed,
    )

  def is_in_doubt(self, path: str) -> bool:
    """Say whether an input is unsigned for no other reason than the example."""
    return (
      not self._blank
      and self._decided[path].signed is None
      and not self._samples.is_signed(path)
      and not self._samples.reading.is_nonnegative(path)
    )

  def _make(
    self,
    kind: str,
    tie: str | None,
    candidates: tuple[int, ...],
    sample: Any,
    quantizer: quantizers.Quantizer,
    signed: bool,
  ) -> bit_choice.BitChoice:
    made = bit_choice.BitChoice(
      candidates,
      sample,
      quantizer=quantizer,
      signed=signed,
      temperature=self._temperature,
      logits=self._ties.get((kind, tie)) if tie else None,
    )
    if tie:
      self._ties[kind, tie] = made.logits
    return made
