"""From a float network to a searchable one, and on to a fixed one."""

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import tabulate
from absl import logging
from flax import nnx

from asga_jax import policy as policy_lib
from asga_jax.allocation import space as search_space
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import macs
from asga_jax.network import attention
from asga_jax.network import calls as tracing
from asga_jax.quantization import bit_choice, layers, surgery
from asga_jax.quantization import rules as rules_lib

_SHOWN = 5  # layers that an error lists


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
    ValueError: bad bits, rules or settings, an example that the network cannot
      be run on, no layer that can be searched, or a deployed network with other
      layers.
  """
  if deployed is not None:
    _check_deployed(deployed, np.ndim(example_input) - 1)
  target, shape = deployed or (model, np.shape(example_input)[1:])
  method = settings.get("method", "__call__")
  made: Any = surgery.make_searchable(
    model, example_input, bits=bits, rules=rules, **settings
  )
  products = [
    path
    for path, layer in layers.quantized_layers(made).items()
    if isinstance(layer, layers.QuantProduct)
  ]
  dtype = jnp.result_type(example_input)
  try:
    network = macs.network_stats(
      target, shape, dtype=dtype, method=method, products=products
    )
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"costs cannot be counted on the deployed network "
      f"({type(target).__name__}) with one input of the shape {tuple(shape)}: "
      f"{error}"
    ) from error
  search_space.build(made, network)
  refused = _not_searched(model, made)
  if rules or settings.get("tie_shared_inputs"):
    logging.info("%s", format_rules(made))
  for path, reason in refused.items():
    logging.warning("not searched: %s: %s", path, reason)
  made.refused_layers = nnx.static(tuple(refused.items()))
  # Not a child and not a variable: the structure remembers its costs.
  made.deployed_network = nnx.static((network, tuple(shape)))
  return made


def _check_deployed(deployed: Any, rank: int) -> None:
  pair = isinstance(deployed, (tuple, list)) and len(deployed) == 2
  if not pair or not isinstance(deployed[0], nnx.Module):
    raise ValueError(
      f"deployed is a {type(deployed).__name__}; expected (network, shape of "
      "one input), such as (network, (224, 224, 3))."
    )
  shape = deployed[1]
  if np.ndim(shape) != 1 or len(shape) != rank:
    raise ValueError(
      f"deployed has the input shape {shape!r}; expected that of one input "
      f"without the batch, {rank} sizes as in the example input."
    )


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
  return dict(_remembered(model, "refused_layers"))


def layer_stats(model: nnx.Module) -> tuple[costs_lib.LayerStats, ...]:
  """List what costs are counted on: what a `Cost` function is called with.

  Args:
    model: from `searchable`.

  Returns:
    Path, MACs per image and number of weights of every layer of the deployed
    network, in call order.

  Raises:
    ValueError: another model.
  """
  network, _ = _remembered(model, "deployed_network")
  layers_of: tuple[costs_lib.LayerStats, ...] = network.layers
  return layers_of


def format_rules(model: nnx.Module) -> str:
  """Lay out which rule decided for every layer of a searchable network.

  Args:
    model: from `searchable`.

  Returns:
    A line a layer: the candidates of its weights and of its input, what they
    are tied by, and the rule that decided.

  Raises:
    ValueError: another model.
  """

  def text(choice: bit_choice.BitChoice, tie: str) -> str:
    bits = ",".join(map(str, choice.candidates()))
    return f"{bits} ({tie})" if tie else bits

  quantized = layers.quantized_layers(model)
  rows = [("layer", "weight bits", "activation bits", "decided by")]
  for path, rule, *ties in _remembered(model, "decided_by"):
    layer = quantized[path]
    pairs = zip((layer.weight, layer.activation), ties, strict=True)
    rows.append((path, *(text(*pair) for pair in pairs), rule))
  return tabulate.tabulate(rows, tablefmt="plain", disable_numparse=True)


def _remembered(model: nnx.Module, name: str) -> Any:
  found = getattr(model, name, None)
  if found is None:
    raise ValueError(
      f"model ({type(model).__name__}) is not searchable; expected what "
      "asga_jax.searchable returns."
    )
  return found


def with_policy(model: nnx.Module, policy: policy_lib.Policy) -> nnx.Module:
  """Fix a searchable network at a policy.

  Args:
    model: from `searchable`; it is not changed.
    policy: for the same layers.

  Returns:
    A copy in which every tensor has one bit-width and the steps that were
    learned for it.

  Raises:
    ValueError: the policy has other layers, or bits that are no candidates; a
      model that is not searchable.
  """
  _remembered(model, "decided_by")
  return surgery.fix_bits(
    model,
    {
      path: (layer.weight_bits, layer.activation_bits)
      for path, layer in policy.layers.items()
    },
  )


def check_policy(
  model: nnx.Module,
  policy: policy_lib.Policy,
  input_shape: Sequence[int],
  *,
  method: str = "__call__",
) -> None:
  """Check that a policy names just the layers that a float network calls.

  Args:
    model: the network, or its shapes from `nnx.eval_shape`; head and
      resolution may differ from those of the policy.
    policy: what is to hold for it.
    input_shape: of one input.
    method: the method that is called on inputs.

  Raises:
    PolicyError: layers that one of the two lacks; it names them.
  """
  products = find_products(model)
  called = macs.network_stats(
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


def find_products(model: nnx.Module) -> list[str]:
  """List the paths of a float network's products of attention."""
  exposed = attention.expose_products(nnx.clone(model))
  return [
    path
    for path, module in tracing.find_layers(exposed).items()
    if isinstance(module, attention.Product)
  ]


def quantize(
  model: nnx.Module,
  example_input: Any,
  policy: policy_lib.Policy,
  **settings: Any,
) -> nnx.Module:
  """Quantize a float network by a policy, without a search.

  The policy may come from a network with another head or resolution.

  Args:
    model: any Flax NNX module; it is not changed.
    example_input: a batch of real inputs: the step sizes are calibrated on it.
    policy: for the layers of the same paths.
    **settings: see `quantization.surgery.make_searchable`.

  Returns:
    A copy in which every tensor has one bit-width, for `train_policy`.

  Raises:
    PolicyError: the policy has other layers.
    ValueError: bad settings.
  """
  shape = np.shape(example_input)[1:]
  method = settings.get("method", "__call__")
  check_policy(model, policy, shape, method=method)
  products = find_products(model)
  return surgery.make_searchable(
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
    **settings,
  )
