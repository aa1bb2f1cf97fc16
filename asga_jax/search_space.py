"""Where a searchable network and the costs of its deployed form meet."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax import policy as policy_lib
from asga_jax import tracing
from asga_jax.cost import costs as costs_lib
from asga_jax.quantization import bit_choice, layers

# The path of a variable in an `nnx.State`.
VariablePath = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class SearchSpace:
  """The choices of a searchable network and what they cost when deployed."""

  network: costs_lib.NetworkStats
  # By layer path, in call order; the groups name the variables below.
  choices: Mapping[str, policy_lib.LayerChoice]
  # From the name of a group to the path of its logits.
  logit_paths: Mapping[str, VariablePath]

  def logits(self, state: nnx.State) -> dict[str, jax.Array]:
    """Reads the logits of every group from a state of `BitLogits`.

    Args:
      state: of arrays or of variables.

    Returns:
      Group name -> array, shape (candidates,).
    """
    flat = dict(nnx.to_flat_state(nnx.as_pure(state)))
    return {group: flat[path] for group, path in self.logit_paths.items()}

  def layer_probabilities(
    self, state: nnx.State, temperature: jax.typing.ArrayLike
  ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Gives the probabilities of weight and activation bits by layer path."""
    by_group = {
      group: bit_choice.probabilities(logits, jnp.asarray(temperature))
      for group, logits in self.logits(state).items()
    }
    return (
      {p: by_group[c.weight_group] for p, c in self.choices.items()},
      {p: by_group[c.activation_group] for p, c in self.choices.items()},
    )

  def expected_use(
    self, limits: Mapping[str, float], costs: Sequence[costs_lib.Cost] = ()
  ) -> Callable[[nnx.State, jax.typing.ArrayLike], jax.Array]:
    """Makes the function from logits to expected cost over budget.

    Args:
      limits: the absolute limit of each cost, by name.
      costs: costs beyond BOPs and size.

    Returns:
      A differentiable function of the logits' state and the temperature, to an
      array of shape (limits,), in the order of the limits.
    """
    by_name = {cost.name: cost for cost in known_costs(costs)}
    relative = []
    for name, limit in limits.items():
      tables, constant = costs_lib.cost_tables(
        self.network, self.choices, by_name[name]
      )
      relative.append(costs_lib.relative_tables(tables, constant, limit))

    def use(state, temperature):
      weights, activations = self.layer_probabilities(state, temperature)
      return jnp.stack(
        [
          costs_lib.expected_cost(tables, constant, weights, activations)
          for tables, constant in relative
        ]
      )

    return use


def known_costs(
  costs: Sequence[costs_lib.Cost] = (),
) -> tuple[costs_lib.Cost, ...]:
  """Lists the costs that a budget may name: BOPs, size and the user's."""
  return (costs_lib.BOPS, costs_lib.SIZE, *costs)


def build(model: nnx.Module, network: costs_lib.NetworkStats) -> SearchSpace:
  """Reads the choices of a searchable network.

  Args:
    model: a network from `quantization.surgery.make_searchable`.
    network: the layers of its deployed form, in call order.

  Returns:
    The space.

  Raises:
    ValueError: the layers of the two differ; it names them.
  """
  found = layers.quantized_layers(model)
  missing = [path for path in network.paths if path not in found]
  unknown = [path for path in found if path not in network.paths]
  if missing or unknown:
    raise ValueError(
      f"the deployed network does not fit {type(model).__name__}: it has "
      f"layers {missing} that the searched one lacks, and lacks {unknown}."
    )
  states = nnx.to_flat_state(nnx.state(model, bit_choice.BitLogits))
  names: dict[int, str] = {}
  paths: dict[str, VariablePath] = {}
  for path, _ in states:
    node = model
    for part in path:
      node = node[part] if isinstance(part, int) else getattr(node, part)
    name = tracing.path_name(path[:-1])
    names[id(node)] = name
    paths[name] = path
  choices = {}
  for path in network.paths:
    layer = found[path]
    weight_bits = layer.weight.candidates()
    activation_bits = layer.activation.candidates()
    choices[path] = policy_lib.LayerChoice(
      weight_bits,
      activation_bits,
      searched=max(len(weight_bits), len(activation_bits)) > 1,
      weight_group=names[id(layer.weight.logits)],
      activation_group=names[id(layer.activation.logits)],
    )
  return SearchSpace(network, choices, paths)


def split_scores(
  space: SearchSpace, by_group: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Sorts scores by group into those of weights and those of activations."""
  of_weights = {c.weight_group for c in space.choices.values()}
  of_activations = {c.activation_group for c in space.choices.values()}
  return (
    {group: by_group[group] for group in by_group if group in of_weights},
    {group: by_group[group] for group in by_group if group in of_activations},
  )
