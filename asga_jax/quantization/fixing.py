"""A searchable network at the bits of a policy, or at other probabilities."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from asga_jax.quantization import bit_choice, layers
from asga_jax.xla import promotion


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


@promotion.usual()
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
  chosen = {
    id(choice): (choice, i) for choice, i in chosen_indices(model, bits)
  }
  # That of a kernel which layers share is met more than once.
  for choice, index in chosen.values():
    choice.keep(index)
  return model


@promotion.usual()
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
