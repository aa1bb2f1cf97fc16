"""Quantization without training: from trained weights to a network at bits."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging
from flax import nnx

from asga_jax import checks, conversion
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.allocation import space as search_space
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.network import examples
from asga_jax.quantization import (
  correction,
  fixing,
  rounding,
  surgery,
)
from asga_jax.quantization import rules as rules_lib
from asga_jax.scores import choice, measured, probe


class PostTraining(NamedTuple):
  """A network that was quantized without training."""

  # At the policy, in evaluation mode, rounded and corrected.
  model: nnx.Module
  policy: policy_lib.Policy
  # Serves any other budget, see `asga_jax.allocate`.
  result: result_lib.SearchResult


def quantize_post_training(
  model: nnx.Module,
  batches: Iterable[Any],
  *,
  budget: str,
  bits: tuple[int, ...] = surgery.DEFAULT_BITS,
  end_bits: int = surgery.END_BITS,
  rules: Sequence[rules_lib.Rule] = (),
  deployed: tuple[nnx.Module, Any] | None = None,
  weight_quantizer: str = "lsq",
  activation_quantizer: str = "lsq_plus",
  per_channel: bool = True,
  tie_shared_inputs: bool = False,
  score: str = "kl",
  scored: int = 1,
  evaluations: int = 0,
  divergence: probe.Divergence = measured.kl_divergence,
  costs: Sequence[costs_lib.Cost] = (),
  model_name: str = "model",
  method: str = "__call__",
  cache: str | os.PathLike[str] | None = None,
  progress: bool = True,
) -> PostTraining:
  """Choose a policy for a trained network by measurement, and apply it.

  Ranges come from all batches, scores from the first ones (`measure_scores`),
  the policy is the exact optimum for them, perhaps improved by measuring whole
  policies (`improve_policy`). Its kernels are rounded by what they do to
  outputs (`round_weights`), biases and batch norm corrected (`correct_bias`),
  both on all batches and, tensor by tensor, in 'kl' as well ('sharp_kl' knows
  of the corrections alone, scores of gradients of neither). No labels, no step
  of training.

  Args:
    model: the trained float network; it is not changed.
    batches: a few hundred inputs of the network, as `searchable` takes them, in
      batches of one size: 32 do.
    budget: such as 'bops=4bit'.
    bits: the candidates of every tensor, see `searchable`.
    end_bits: the bits of the first and the last layer.
    rules: exceptions, see `asga_jax.Rule`.
    deployed: what costs are counted on, see `searchable`.
    weight_quantizer: see `searchable`.
    activation_quantizer: see `searchable`.
    per_channel: see `searchable`.
    tie_shared_inputs: see `searchable`.
    score: see `measure_scores`.
    scored: how many of the batches scores are measured on.
    evaluations: the largest number of policies that are measured after that, on
      the same batches; 0 for none.
    divergence: of outputs from those of the float network; the default is for
      logits over classes.
    costs: costs beyond BOPs and sizes.
    model_name: what the policy calls the network.
    method: the method that is called on inputs.
    cache: a file to keep scores in, see `measure_scores`.
    progress: whether to show what is measured, with time left.

  Returns:
    The network at its policy, the policy, and scores that serve any budget.

  Raises:
    InfeasibleBudgetError: no policy is cheap enough.
    ValueError: no batches, or see `searchable` and `measure_scores`.
  """
  # Before ranges are taken; `measure_scores` checks the rest.
  budget_lib.check_kinds(
    budget_lib.parse_budget(budget), search_space.known_costs(costs)
  )
  measured.check_settings(score, divergence, model_name, cache, progress)
  checks.number("evaluations", evaluations, least=0, whole=True)
  checks.number("scored", scored, least=1, whole=True)
  given = list(examples.each_of(batches))
  if scored > len(given):
    raise ValueError(
      f"scored={scored} of {len(given)} batches; expected at least one of them,"
      " and no more than there are."
    )
  raw = [example.given for example in given]
  searchable = conversion.searchable(
    model,
    raw[0],
    bits=bits,
    end_bits=end_bits,
    rules=rules,
    deployed=deployed,
    weight_quantizer=weight_quantizer,
    activation_quantizer=activation_quantizer,
    per_channel=per_channel,
    tie_shared_inputs=tie_shared_inputs,
    batches=raw[1:],
    method=method,
  )
  result = measured.measure_scores(
    searchable,
    raw[:scored],
    budget=budget,
    score=score,
    divergence=divergence,
    rounded_on=None if score == "sharp_kl" else raw,
    costs=costs,
    model_name=model_name,
    cache=cache,
    progress=progress,
  )
  policy = result_lib.allocate(result)
  if evaluations:
    policy = choice.improve_policy(
      result,
      policy,
      raw[:scored],
      evaluations=evaluations,
      divergence=divergence,
      rounded_on=raw,
      progress=progress,
    )
  logging.info("correcting biases and batch norm on %d batches", len(raw))
  fixed = apply_policy(searchable, policy, raw, reference=model)
  return PostTraining(fixed, policy, result)


def apply_policy(
  searchable: nnx.Module,
  policy: policy_lib.Policy,
  batches: Iterable[Any],
  *,
  reference: nnx.Module,
) -> nnx.Module:
  """Fix a calibrated network at a policy; round and correct it.

  Policies of one network share the compilation.

  Args:
    searchable: the network with its ranges; it is not changed.
    policy: of its candidates.
    batches: see `round_weights` and `correct_bias`.
    reference: the float network.

  Returns:
    A copy in evaluation mode.
  """
  bits = {
    path: (layer.weight_bits, layer.activation_bits)
    for path, layer in policy.layers.items()
  }
  return apply_bits(searchable, bits, batches, reference=reference)


def apply_bits(
  searchable: nnx.Module,
  bits: Mapping[str, tuple[int, int]],
  batches: Iterable[Any],
  *,
  reference: nnx.Module,
) -> nnx.Module:
  """Do what `apply_policy` does, for (weight bits, activation bits) by path."""
  fixed = fixing.fix_bits(searchable, bits)
  given = list(batches)
  rounded = rounding.round_weights(fixed, given)
  return correction.correct_bias(rounded, given, reference=reference)
