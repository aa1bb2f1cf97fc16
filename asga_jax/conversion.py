"""From a float network to a searchable one, and on to a fixed one."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax import policy as policy_lib
from asga_jax import search_space
from asga_jax.cost import macs
from asga_jax.quantization import rules as rules_lib
from asga_jax.quantization import surgery


def searchable(
  model: nnx.Module,
  example_input: Any,
  *,
  bits: tuple[int, ...] = surgery.DEFAULT_BITS,
  rules: Sequence[rules_lib.Rule] = (),
  deployed: tuple[nnx.Module, Sequence[int]] | None = None,
  **settings: Any,
) -> nnx.Module:
  """Give every convolution and linear layer of a network a choice of bits.

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
  # Not a child and not a variable: the structure remembers its costs.
  made.deployed_network = nnx.static((network, tuple(shape)))
  return made


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
