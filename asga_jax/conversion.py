"""From a float network to a searchable one, and on to a fixed one."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx

from asga_jax import policy as policy_lib
from asga_jax.allocation import space as search_space
from asga_jax.cost import costs, macs
from asga_jax.network import arguments, bridged, examples, program
from asga_jax.quantization import (
  batch_norm,
  fixing,
  layers,
  remembered,
  surgery,
)
from asga_jax.quantization import rules as rules_lib

_SHOWN = 5  # layers that an error lists


def searchable(
  model: nnx.Module,
  example_input: Any,
  *,
  bits: tuple[int, ...] = surgery.DEFAULT_BITS,
  end_bits: int = surgery.END_BITS,
  rules: Sequence[rules_lib.Rule] = (),
  deployed: tuple[nnx.Module, Any] | None = None,
  weight_quantizer: str = "lsq",
  activation_quantizer: str = "lsq_plus",
  per_channel: bool = True,
  tie_shared_inputs: bool = False,
  batches: Iterable[Any] = (),
  method: str = "__call__",
) -> nnx.Module:
  """Give every layer of a network that has a kernel a choice of bits.

  What has a kernel and cannot be searched is logged with the reason, see
  `not_searched`.

  Args:
    model: any Flax NNX module; it is not changed. One of Flax Linen comes over
      by `nnx.bridge.ToNNX`.
    example_input: a batch of inputs as the network takes it, best of real
      ones, since initial ranges come from it: an array of shape (batch, ...),
      a tuple of the arguments in order, or a dict of them by name. Of
      `jax.ShapeDtypeStruct` come none.
    bits: the candidates of every searched tensor, each in 2..8, or 32 for
      float.
    end_bits: the bits of the first and the last layer called, not searched.
    rules: exceptions, see `asga_jax.Rule`; the first that matches decides.
    deployed: the network as it will be deployed (its own head) and an example
      of its inputs, or the shape of one: what costs are counted on. None:
      `model` and the shapes of the example.
    weight_quantizer: 'lsq', 'pact', 'dorefa' or 'hwgq'.
    activation_quantizer: one of the same, or 'lsq_plus': 'lsq' with a learned
      zero point for inputs that may be negative.
    per_channel: whether each output channel of a kernel has its own step.
    tie_shared_inputs: whether searched layers that read the same tensor share
      their activation bits, where no rule ties these.
    batches: more batches that initial ranges come from.
    method: the method that is called on inputs.

  Returns:
    A copy with the same classes and paths, whose costs are known. Layers that
    share a kernel share the choice of its bits.

  Raises:
    ValueError: bad bits, rules or settings, an example that the network cannot
      be run on, no layer that can be searched, or a deployed network with other
      layers.

  Source: one float tensor and one product of mixtures, Cai and Vasconcelos,
  "Rethinking Differentiable Search for Mixed-Precision Neural Networks" (2020).
  """
  arguments.check_module(model)
  arguments.check_method(model, method)
  example = examples.as_example(example_input)
  one = example.shapes(batch=1)
  target = model
  if deployed is not None:
    target, one = _check_deployed(deployed, example)
  model = bridged.with_layers(model, example, method=method)
  gathered: list[Any] = []
  made: Any = surgery.make_searchable(
    model,
    example_input,
    bits=bits,
    rules=rules,
    end_bits=end_bits,
    weight_quantizer=weight_quantizer,
    activation_quantizer=activation_quantizer,
    per_channel=per_channel,
    tie_shared_inputs=tie_shared_inputs,
    batches=batches,
    method=method,
    note=gathered.append,
  )
  products = [
    path
    for path, layer in layers.quantized_layers(made).items()
    if not layer.has_kernel
  ]
  seen = None
  if deployed is None:
    target, seen = model, (gathered[0].program, gathered[0].reading)
  else:
    target = bridged.with_layers(target, one, method=method)
  network = _count(target, one, method=method, products=products, seen=seen)
  search_space.build(made, network)
  refused = remembered.find_refused(model, made, network.float_layers)
  if rules or tie_shared_inputs:
    logging.info("%s", remembered.format_rules(made))
  for path, reason in refused.items():
    logging.warning("not searched: %s: %s", path, reason)
  made.refused_layers = nnx.static(tuple(refused.items()))
  # Not a child and not a variable: the structure remembers its costs.
  made.deployed_network = nnx.static((network, one.shape))
  return made


def _count(
  model: nnx.Module, one: Sequence[int] | examples.Example, **settings: Any
) -> costs.NetworkStats:
  """Count costs; ValueError where the network does not run."""
  try:
    return macs.network_stats(model, one, **settings)
  except Exception as error:
    example = isinstance(one, examples.Example)
    shape = one.describe() if example else f"the shape {tuple(one)}"  # type: ignore[union-attr, arg-type]
    reason = " ".join(str(error).split())
    raise ValueError(
      f"costs cannot be counted on the deployed network"
      f" ({type(model).__name__}) with one input, {shape}: {reason}"
    ) from error


def _check_deployed(
  deployed: Any, example: examples.Example
) -> tuple[nnx.Module, examples.Example]:
  """Give the deployed network and the shapes of one of its inputs."""
  pair = isinstance(deployed, (tuple, list)) and len(deployed) == 2
  if not pair or not isinstance(deployed[0], nnx.Module):
    raise ValueError(
      f"deployed is a {type(deployed).__name__}; expected (network, shape of "
      "one input), such as (network, (224, 224, 3)), or (network, example)."
    )
  network, given = deployed
  if not (remembered.is_shape(given) or isinstance(given, int)):
    return network, examples.as_example(given).shapes(batch=1)
  if example.is_structured:
    raise ValueError(
      f"deployed has the input shape {given!r} beside an example of several"
      " inputs; expected an example of the inputs that it takes."
    )
  rank = len(example.shape)
  if isinstance(given, int) or len(given) != rank:
    raise ValueError(
      f"deployed has the input shape {given!r}; expected that of one input "
      f"without the batch, {rank} sizes as in the example input."
    )
  dtype = jnp.result_type(example.given)
  one: Any = jax.ShapeDtypeStruct((1, *arguments.check_shape(given)), dtype)
  return network, examples.Example(one)


def with_policy(
  model: nnx.Module,
  policy: policy_lib.Policy,
  *,
  batches: Iterable[Any] | None = None,
) -> nnx.Module:
  """Fix a searchable network at a policy.

  Args:
    model: from `searchable`, or the `model` of a search's result; it is not
      changed.
    policy: for the same layers.
    batches: inputs of the network, without augmentation, for
      `reestimate_batch_norm`. None leaves the running statistics as they are,
      and says so where there are any: those of a search were gathered while
      bits were mixed, and cost accuracy.

  Returns:
    A copy in evaluation mode in which every tensor has one bit-width and the
    steps that were learned for it.

  Raises:
    ValueError: the policy has other layers, or bits that are no candidates; a
      model that is not searchable.
  """
  remembered.recall(model, "decided_by")
  policy_lib.check(policy)
  fixed = fixing.fix_bits(
    model,
    {
      path: (layer.weight_bits, layer.activation_bits)
      for path, layer in policy.layers.items()
    },
  )
  fixed.eval()
  if batches is not None:
    batch_norm.reestimate_batch_norm(fixed, batches)
  elif batch_norm.has_batch_norm(fixed) and _has_choice(model):
    logging.warning(
      "batch norm keeps the statistics that it had before the policy; those of"
      " a search are of mixed bits: with_policy(model, policy, batches=...) or"
      " reestimate_batch_norm replaces them"
    )
  return fixed


def _has_choice(model: nnx.Module) -> bool:
  """Tell whether some tensor has several candidates."""
  return any(
    len(choice.candidates()) > 1
    for layer in layers.quantized_layers(model).values()
    for choice in (layer.weight, layer.activation)
  )


def check_policy(
  model: nnx.Module,
  policy: policy_lib.Policy,
  input_shape: Sequence[int] | examples.Example,
  *,
  method: str = "__call__",
) -> None:
  """Check that a policy names just the layers that a float network calls.

  Args:
    model: the network, or its shapes from `nnx.eval_shape`; head and
      resolution may differ from those of the policy.
    policy: what is to hold for it.
    input_shape: of one input; or an example of one.
    method: the method that is called on inputs.

  Raises:
    PolicyError: layers that one of the two lacks; it names them.
  """
  policy_lib.check(policy)
  products = program.find_products(model)
  called = _count(
    model,
    input_shape,
    method=method,
    products=[path for path in products if path in policy.layers],
  ).paths
  missing = [path for path in called if path not in policy.layers]
  unknown = [path for path in policy.layers if path not in called]
  if missing or unknown:
    told = [
      f"{what} layers {paths[:_SHOWN]}"
      + f" and {len(paths) - _SHOWN} more" * (len(paths) > _SHOWN)
      for what, paths in (("lacks the", missing), ("has the unknown", unknown))
      if paths
    ]
    raise policy_lib.PolicyError(
      f"the policy of {policy.model!r} does not fit {type(model).__name__}: it"
      f" {' and '.join(told)}; expected the layers of a network of the same"
      " topology, whatever its head and resolution."
    )


def quantize(
  model: nnx.Module,
  example_input: Any,
  policy: policy_lib.Policy,
  *,
  weight_quantizer: str = "lsq",
  activation_quantizer: str = "lsq_plus",
  per_channel: bool = True,
  batches: Iterable[Any] = (),
  method: str = "__call__",
) -> nnx.Module:
  """Quantize a float network by a policy, without a search.

  The policy may come from a network with another head or resolution.

  Args:
    model: any Flax NNX module; it is not changed.
    example_input: a batch of real inputs, as `searchable` takes it: the step
      sizes are calibrated on it.
    policy: for the layers of the same paths.
    weight_quantizer: 'lsq', 'pact', 'dorefa' or 'hwgq'.
    activation_quantizer: one of the same, or 'lsq_plus': 'lsq' with a learned
      zero point for inputs that may be negative.
    per_channel: whether each output channel of a kernel has its own step.
    batches: more batches to calibrate on.
    method: the method that is called on inputs.

  Returns:
    A copy in evaluation mode in which every tensor has one bit-width, for
    `train_policy`. Batch norm keeps the float network's statistics; see
    `reestimate_batch_norm`.

  Raises:
    PolicyError: the policy has other layers.
    ValueError: bad settings.

  Source: Esser et al., "LSQ" (2020), equations 1 and 2; Bhalgat et al., "LSQ+"
  (2020), section 3.1, for zero points.
  """
  arguments.check_module(model)
  arguments.check_method(model, method)
  policy_lib.check(policy)
  surgery.make_quantizers(weight_quantizer, activation_quantizer, per_channel)
  examples.check_batches(batches)
  example = examples.as_example(example_input)
  model = bridged.with_layers(model, example, method=method)
  check_policy(model, policy, example.shapes(batch=1), method=method)
  products = program.find_products(model)
  made = surgery.make_searchable(
    model,
    example_input,
    rules=[
      rules_lib.Rule(
        re.escape(path),
        weight_bits=layer.weight_bits,
        activation_bits=layer.activation_bits,
        products=path in products,
      )
      for path, layer in policy.layers.items()
    ],
    weight_quantizer=weight_quantizer,
    activation_quantizer=activation_quantizer,
    per_channel=per_channel,
    batches=batches,
    method=method,
  )
  made.eval()
  return made
