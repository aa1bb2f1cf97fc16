"""What a fine-tuning starts from: its policy, its network, its teacher."""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from asga_jax import conversion, models, result
from asga_jax import policy as policy_lib
from asga_jax.allocation import space as search_space
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import macs
from asga_jax.network import program
from asga_jax.quantization import layers
from asga_jax.quantization import rules as rules_lib
from asga_jax.runs import build, config_rules, read
from asga_jax.runs import config as config_lib
from asga_jax.weights import files as weight_files
from asga_jax.weights import load as pretrained


def read_policy(config: ml_collections.ConfigDict) -> policy_lib.Policy | None:
  """Read or make the policy that a configuration names, and check it.

  Args:
    config: of the fine-tuning.

  Returns:
    The policy; None for the float network.

  Raises:
    PolicyError: no such policy, a damaged one, or one of another topology.
  """
  given = config.finetune.policy
  if config_lib.is_float(config):
    return None
  uniform = re.fullmatch(r"([2-8])bit", given)
  if uniform:
    return uniform_policy(config, int(uniform[1]))
  if not os.path.isfile(given):
    raise policy_lib.PolicyError(
      f"config.finetune.policy is {given!r}; expected the path of a policy"
      " file, 'float', or '2bit' to '8bit'."
    )
  policy = policy_lib.load(given)
  if policy.model not in (config.model, "model"):
    raise policy_lib.PolicyError(
      f"{given} is a policy of {policy.model!r}, and config.model is "
      f"{config.model!r}; expected a policy of the same network."
    )
  try:
    conversion.check_policy(_shapes(config), policy, _input_shape(config))
  except policy_lib.PolicyError as error:
    raise policy_lib.PolicyError(f"{given}: {error}") from error
  return policy


def _shapes(config: ml_collections.ConfigDict) -> nnx.Module:
  """Make the shapes of the network; its head does not matter here."""
  construct = models.constructor(config.model)
  return nnx.eval_shape(
    lambda: construct(2, stem=config.stem, rngs=nnx.Rngs(0))
  )


def _input_shape(config: ml_collections.ConfigDict) -> tuple[int, ...]:
  return tuple(build.example_shape(config))


def uniform_policy(
  config: ml_collections.ConfigDict, bits: int
) -> policy_lib.Policy:
  """Make the policy of equal bits, but where ends or rules are fixed.

  Its costs are counted on the deployed network, as those of a search.

  Args:
    config: `end_bits` are those of the first and the last layer; `rules` fix
      others.
    bits: of weights and activations.

  Raises:
    ValueError: bad rules or ends.
  """
  deployed, shape = build.make_deployed(config)
  products = program.find_products(deployed)
  paths = macs.network_stats(deployed, shape).paths
  decided = rules_lib.resolve(
    config_rules.make_rules(config),
    paths,
    bits=(bits,),
    end_bits=config.end_bits,
    products=products,
  )
  network = macs.network_stats(
    deployed, shape, products=[path for path in products if path in decided]
  )
  choices = {
    path: policy_lib.LayerChoice(
      rule.weight_bits,
      rule.activation_bits,
      searched=max(len(rule.weight_bits), len(rule.activation_bits)) > 1,
    )
    for path, rule in decided.items()
  }
  budget = budget_lib.parse_budget(f"bops={bits}bit")
  return result.make_policy(
    search_space.SearchSpace(network, choices, {}),
    costs_lib.uniform_bits(network, choices, bits),
    budget_lib.resolve(budget, network, choices, search_space.known_costs()),
    budget=str(budget),
    model_name=config.model,
    input_shape=shape,
    provenance={"method": "uniform", "versions": result.versions()},
  )


def make_model(
  config: ml_collections.ConfigDict,
  policy: policy_lib.Policy | None,
  num_classes: int,
  images: np.ndarray | jax.Array,
  *,
  begun: bool = False,
) -> nnx.Module:
  """Make the network that is trained, with the weights that it starts from.

  Args:
    config: of the fine-tuning.
    policy: None for the float network.
    num_classes: of the data.
    images: preprocessed training images, shape (batch, size, size, 3): step
      sizes are calibrated on them.
    begun: whether weights come from a checkpoint later.

  Returns:
    The network at its policy. From a search or a fine-tuning, each step size
    is taken over that was learned for the same bits.

  Raises:
    ValueError: weights that cannot be read or do not fit.
  """
  network = build.make_network(
    config, num_classes, seed=config.finetune.seed, trained=False
  )
  start = config.finetune.start_from
  source = None
  if not begun and start:
    source = read.read_trained(start).source
    arrays = pretrained.variables_of(source, only=(nnx.Param, nnx.BatchStat))
    network = _fill(config, network, arrays, num_classes)
  elif not begun and config.weights.path:
    arrays = weight_files.read(config.weights.path)
    network = _fill(config, network, arrays, num_classes)
  if policy is None:
    return network
  made = conversion.quantize(
    network,
    images,
    policy,
    weight_quantizer=config.weight_quantizer,
    activation_quantizer=config.activation_quantizer,
    per_channel=config.per_channel,
  )
  if source is not None:
    _take_steps(made, source, tuple(config.weights.skip))
  return made


def _fill(
  config: ml_collections.ConfigDict,
  network: nnx.Module,
  arrays: Mapping[str, Any],
  num_classes: int,
) -> nnx.Module:
  """Fill a float network with trained weights and statistics."""
  try:
    return pretrained.fill(
      network,
      {name: np.asarray(array) for name, array in arrays.items()},
      source=config.finetune.start_from or config.weights.path,
      name_map=config.weights.name_map or None,
      skip=tuple(config.weights.skip),
    )
  except weight_files.WeightsError as error:
    head = macs.network_stats(_shapes(config), _input_shape(config)).paths[-1]
    raise weight_files.WeightsError(
      f"{error}\n  {config.data.name} has {num_classes} classes; where weights "
      f"are of another head, --config.weights.skip=\"('{head}/.*',)\" starts "
      "the head anew"
    ) from error


def _take_steps(
  model: nnx.Module, source: nnx.Module, skip: tuple[str, ...]
) -> None:
  """Take over the step sizes that were learned for a network's bits."""
  trained = layers.quantized_layers(source)
  taken = total = 0
  for path, layer in layers.quantized_layers(model).items():
    for kind in ("weight", "activation"):
      total += 1
      name = f"{path}/{kind}/parameter"
      if path in trained and not any(re.fullmatch(x, name) for x in skip):
        choice, other = getattr(layer, kind), getattr(trained[path], kind)
        taken += choice.take_from(other)
  logging.info(
    "%d of %d step sizes are taken over, the others calibrated", taken, total
  )


def make_teacher(
  config: ml_collections.ConfigDict, num_classes: int
) -> nnx.Module | None:
  """Make the float network that teaches; None without a distillation.

  Raises:
    ValueError: its weights cannot be read or do not fit.
  """
  distillation = config.finetune.distillation
  if not distillation.weight:
    return None
  network = build.make_network(config, num_classes, trained=False)
  return pretrained.load_weights(
    network, distillation.path, name_map=distillation.name_map or None
  )
