"""From a float network to a searchable one, and on to a fixed one."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from asga_jax import policy as policy_lib
from asga_jax import search_space, tracing
from asga_jax.cost import macs
from asga_jax.quantization import layers, surgery
from asga_jax.quantization import rules as rules_lib


def searchable(
  model: nnx.Module,
  example_input: Any,
  *,
  bits: tuple[int, ...] = surgery.DEFAULT_BITS,
  rules: Sequence[rules_lib.Rule] = (),
  deployed: tuple[nnx.Module, Sequence[int]] | None = None,
  **settings: Any,
) -> nnx.Module:
  """Give every layer of a network that has a kernel a choice of bits.

  What has a kernel and cannot be searched is logged with the reason, see
  `not_searched`.

  Args:
    model: any Flax NNX module; it is not changed.
    example_input: a batch of inputs, best of real ones.
    bits: the candidates, each in 2..8, or 32 for float.
    rules: exceptions, see `quantization.rules.Rule`.
    deployed: the network as it will be deployed (its own head) and the shape
      of one of its inputs: what costs are counted on. None: `model` and the
      shape of the example.
    **settings: see `quantization.surgery.make_searchable`.

  Returns:
    A copy with the same paths, whose costs are known.

  Raises:
    ValueError: bad bits, rules or settings, no layer that can be searched, or
      a deployed network with other layers.
  """
  target, shape = deployed or (model, np.shape(example_input)[1:])
  method = settings.get("method", "__call__")
  network = macs.network_stats(
    target, shape, dtype=jnp.result_type(example_input), method=method
  )
  made: Any = surgery.make_searchable(
    model, example_input, bits=bits, rules=rules, **settings
  )
  search_space.build(made, network)
  refused = _not_searched(model, made)
  for path, reason in refused.items():
    logging.warning("not searched: %s: %s", path, reason)
  made.refused_layers = nnx.static(tuple(refused.items()))
  # Not a child and not a variable: the structure remembers its costs.
  made.deployed_network = nnx.static((network, tuple(shape)))
  return made


def _not_searched(model: nnx.Module, made: nnx.Module) -> dict[str, str]:
  quantized = layers.quantized_layers(made)
  found = tracing.find_refused(model)
  for path in tracing.find_layers(model):
    if path not in quantized:
      found[path] = "it is not called"
  return {path or "(the network itself)": why for path, why in found.items()}


def not_searched(model: nnx.Module) -> dict[str, str]:
  """List what has a kernel and stays float in a searchable network.

  Args:
    model: from `searchable`.

  Returns:
    Path -> reason.

  Raises:
    ValueError: another model.
  """
  refused = getattr(model, "refused_layers", None)
  if refused is None:
    raise ValueError(
      f"model ({type(model).__name__}) is not searchable; expected what "
      "asga_jax.searchable returns."
    )
  return dict(refused)


def with_policy(model: nnx.Module, policy: policy_lib.Policy) -> nnx.Module:
  """Fix a searchable network at a policy.

  Args:
    model: from `searchable`; it is not changed.
    policy: for the same layers.

  Returns:
    A copy in which every tensor has one bit-width and the steps that were
    learned for it.

  Raises:
    ValueError: the policy has other layers, or bits that are no candidates.
  """
  return surgery.fix_bits(
    model,
    {
      path: (layer.weight_bits, layer.activation_bits)
      for path, layer in policy.layers.items()
    },
  )
