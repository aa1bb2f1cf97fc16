"""From any network to a searchable one, and on to one fixed by a policy."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.network import attention
from asga_jax.network import calls as tracing
from asga_jax.network import kinds as layer_kinds
from asga_jax.quantization import (
  bit_choice,
  calibration,
  layers,
  quantizers,
)
from asga_jax.quantization import (
  rules as rules_lib,
)

DEFAULT_BITS = (2, 3, 4, 5, 6, 8)
END_BITS = 8


def make_searchable(
  model: nnx.Module,
  example_input: Any,
  *,
  bits: tuple[int, ...] = DEFAULT_BITS,
  rules: Sequence[rules_lib.Rule] = (),
  end_bits: int = END_BITS,
  weight_quantizer: str = "lsq",
  activation_quantizer: str = "lsq",
  per_channel: bool = True,
  tie_shared_inputs: bool = False,
  method: str = "__call__",
) -> nnx.Module:
  """Give every layer of a network that has a kernel a choice of bits.

  Args:
    model: any Flax NNX module with layers of `layer_kinds.KINDS`; neither it
      nor its variables are changed.
    example_input: a batch of inputs; real ones give better initial ranges. Of
      a `jax.ShapeDtypeStruct` no ranges come: these are set later, by
      `calibration.calibrate` or from a checkpoint.
    bits: the candidates of every searched tensor.
    rules: exceptions, see `rules.Rule`.
    end_bits: the bits of the first and the last layer called, not searched.
    weight_quantizer: one of `quantizers.QUANTIZERS`.
    activation_quantizer: one of `quantizers.QUANTIZERS`.
    per_channel: whether each output channel of a kernel has its own step.
    tie_shared_inputs: whether searched layers that read the same tensor share
      their activation bits, where no rule ties these.
    method: the method that is called on inputs.

  Returns:
    A copy with the same paths for all that the model had. Its attribute
    `decided_by` is what `rules.describe` gives.

  Raises:
    ValueError: bad bits or rules, an unknown quantizer, an example that the
      model cannot be run on, a model without layers, or one that is searchable
      already.
    TypeError: a layer of a subclass with a `__call__` of its own.
  """
  rules_lib.check_rules(rules)
  quantizers.check_bits(bits, "bits")
  quantizers.check_bits(end_bits, "end_bits")
  of_weights = quantizers.make_quantizer(
    weight_quantizer, weights=True, per_channel=per_channel
  )
  of_activations = quantizers.make_quantizer(
    activation_quantizer, weights=False, per_channel=False
  )
  if layers.quantized_layers(model):
    raise ValueError(
      f"model ({type(model).__name__}) has quantized layers already; expected "
      "the float network."
    )
  samples = calibration.sample_inputs(model, example_input, method=method)
  blank = isinstance(example_input, jax.ShapeDtypeStruct)
  products = tuple(samples.seconds)
  paths = tuple(path for path in samples.inputs if path not in products)
  if not paths:
    raise ValueError(
      f"model ({type(model).__name__}) calls no layer that can be searched; "
      f"expected one of {layer_kinds.NAMES}."
    )
  decided = rules_lib.resolve(
    rules,
    paths,
    bits=bits,
    end_bits=end_bits,
    products=products,
    readers=samples.readers if tie_shared_inputs else None,
  )
  temperature = bit_choice.Temperature(jnp.ones(()))
  ties: dict[tuple[str, str], bit_choice.BitLogits] = {}

  def choice(kind, tie, candidates, sample, quantizer, signed):
    made = bit_choice.BitChoice(
      candidates,
      sample,
      quantizer=quantizer,
      signed=signed,
      temperature=temperature,
      logits=ties.get((kind, tie)) if tie else None,
    )
    if tie:
      ties[kind, tie] = made.logits
    return made

  def replace(path, node):
    name = tracing.path_name(path)
    kind = layer_kinds.kind_of(node)
    if name not in decided or kind is None:
      return node
    rule, sample = decided[name], samples.inputs[name]
    if name in samples.seconds:
      second = samples.seconds[name]
      weight = (second.values, of_activations, bool(second.signed))
    else:
      # Of numpy: each shape would be a program to compile.
      kernel: Any = np.asarray(node.kernel[...])
      matrix = layer_kinds.to_matrix(kernel, kind.output_axes(node))
      if blank:
        matrix = matrix[:1]  # Shapes are all that is wanted now.
      weight = (calibration.weight_sample(matrix, of_weights), of_weights, True)
    return layers.quantize_layer(
      node,
      weight=choice("weight", rule.weight_tie, rule.weight_bits, *weight),
      activation=choice(
        "activation",
        rule.activation_tie,
        rule.activation_bits,
        sample.values,
        of_activations,
        bool(sample.signed),
      ),
    )

  copy = nnx.clone(model)
  if any(path in decided for path in products):
    attention.expose_products(copy)
  made: Any = nnx.recursive_map(replace, copy)
  # Without the bits, so that these stay data and never recompile.
  made.decided_by = nnx.static(rules_lib.describe(rules, decided))
  return made


def check_paths(model: nnx.Module, bits: Mapping[str, Any]) -> None:
  """Check that a policy names just the quantized layers of a network.

  Raises:
    ValueError: layers are missing or unknown; it names them.
  """
  found = layers.quantized_layers(model)
  missing = [path for path in found if path not in bits]
  unknown = [path for path in bits if path not in found]
  if missing or unknown:
    raise ValueError(
      f"the policy does not fit {type(model).__name__}: it lacks layers "
      f"{missing} and has unknown layers {unknown}."
    )


def chosen_indices(
  model: nnx.Module, bits: Mapping[str, tuple[int, int]]
) -> list[tuple[bit_choice.BitChoice, int]]:
  """Find a policy's bits among the candidates of every tensor.

  Args:
    model: a searchable network.
    bits: weight bits and activation bits by layer path.

  Returns:
    The choices of the network, each with the index of its bits.

  Raises:
    ValueError: layers are missing or unknown, bits are no candidates, or tied
      tensors are given different bits.
  """
  check_paths(model, bits)
  found = []
  tied: dict[int, tuple[str, int]] = {}
  for path, layer in layers.quantized_layers(model).items():
    for kind, choice, bit in zip(
      ("weight", "activation"),
      (layer.weight, layer.activation),
      bits[path],
      strict=True,
    ):
      candidates = choice.candidates()
      if bit not in candidates:
        raise ValueError(
          f"layer {path!r} has no {kind} candidate of {bit} bits; its "
          f"candidates are {candidates}."
        )
      other, shared = tied.setdefault(id(choice.logits), (path, bit))
      if bit != shared:
        raise ValueError(
          f"layers {other!r} and {path!r} are tied and share their {kind} "
          f"bits, but are given {shared} and {bit}; expected the same."
        )
      found.append((choice, candidates.index(bit)))
  return found


def fix_bits(
  model: nnx.Module, bits: Mapping[str, tuple[int, int]]
) -> nnx.Module:
  """Keep one candidate of every tensor.

  Args:
    model: a searchable network; it is not changed.
    bits: weight bits and activation bits by layer path.

  Returns:
    A copy that is fixed at those bits, with the steps that were learned for
    them. Two policies of one network give the same shapes.

  Raises:
    ValueError: see `chosen_indices`.
  """
  model = nnx.clone(model)
  for choice, index in chosen_indices(model, bits):
    choice.keep(index)
  return model


def select_bits(
  model: nnx.Module, bits: Mapping[str, tuple[int, int]]
) -> nnx.Module:
  """Set the logits so that the mixture is exactly one policy.

  The shapes stay those of the searchable network, so that a compiled
  evaluation serves the mixture and every policy.

  Args:
    model: a searchable network; it is not changed.
    bits: weight bits and activation bits by layer path.

  Returns:
    A copy whose probabilities are 0 and 1.

  Raises:
    ValueError: see `chosen_indices`.
  """
  model = nnx.clone(model)
  for choice, index in chosen_indices(model, bits):
    logits = choice.logits[...]
    # Low enough that every other candidate underflows to zero.
    choice.logits[...] = jnp.where(
      jnp.arange(logits.size) == index, 0.0, -1e9
    ).astype(logits.dtype)
  return model


def with_temperature(model: nnx.Module, temperature: jax.Array) -> nnx.Module:
  """Set the softmax temperature of all choices; returns a copy."""
  model = nnx.clone(model)
  for layer in layers.quantized_layers(model).values():
    for choice in (layer.weight, layer.activation):
      choice.temperature[...] = temperature
  return model


def holding_probabilities(model: nnx.Module) -> nnx.Module:
  """Make a copy whose logits are read as the probabilities themselves.

  For a training step, which computes those of all tensors at once and takes
  gradients in them.
  """
  model = nnx.clone(model)
  for layer in layers.quantized_layers(model).values():
    layer.weight.holds_probabilities = True
    layer.activation.holds_probabilities = True
  return model
