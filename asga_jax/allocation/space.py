"""Where a searchable network and the costs of its deployed form meet."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax import checks
from asga_jax import policy as policy_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.network import program
from asga_jax.quantization import bit_choice, layers, logit_layout

# The path of a variable in an `nnx.State`.
VariablePath = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class SearchSpace:
  """The choices of a searchable network and what they cost when deployed."""

  network: costs_lib.NetworkStats
  # By layer path, in call order; the groups name the variables below.
  choices: Mapping[str, policy_lib.LayerChoice]
  # From the name of a group to the path of its logits.
  logit_paths: Mapping[str, VariablePath]

  @property
  def widths(self) -> dict[str, tuple[int, ...]]:
    """The candidates of every group, in the order of its scores."""
    return {
      group: bits
      for choice in self.choices.values()
      for group, bits in (
        (choice.weight_group, choice.weight_bits),
        (choice.activation_group, choice.activation_bits),
      )
    }

  def by_group(self, state: nnx.State) -> dict[str, jax.Array]:
    """Read what a state of `BitLogits`' form holds for every group.

    Args:
      state: of arrays.

    Returns:
      Group name -> array, shape (candidates,).
    """
    flat = dict(nnx.to_flat_state(state))
    return {group: flat[path] for group, path in self.logit_paths.items()}

  def expected_use(
    self,
    layout: logit_layout.LogitLayout,
    limits: Mapping[str, float],
    costs: Sequence[costs_lib.Cost] = (),
  ) -> Callable[[logit_layout.StackedLogits], jax.Array]:
    """Make the function from probabilities to expected cost over budget.

    Layers with equally many candidates are treated together: with p of the
    weights and q of the inputs, the cost of each is p^T T q.

    Args:
      layout: of the stacked probabilities.
      limits: the absolute limit of each cost, by name.
      costs: costs beyond BOPs and sizes.

    Returns:
      A differentiable function of the stacked probabilities, to an array of
      shape (limits,), in the order of the limits.
    """
    rows = {
      path: (count, row)
      for count, paths in layout.rows.items()
      for row, path in enumerate(paths)
    }
    by_name = {cost.name: cost for cost in known_costs(costs)}
    alike: dict[tuple[int, int], list[str]] = {}
    for path, choice in self.choices.items():
      shape = (len(choice.weight_bits), len(choice.activation_bits))
      alike.setdefault(shape, []).append(path)

    def rows_of(paths: list[str], kind: str) -> np.ndarray:
      groups = [getattr(self.choices[path], f"{kind}_group") for path in paths]
      return np.array([rows[self.logit_paths[group]][1] for group in groups])

    indices = {
      shape: (rows_of(paths, "weight"), rows_of(paths, "activation"))
      for shape, paths in alike.items()
    }
    relative = [
      costs_lib.relative_tables(
        *costs_lib.cost_tables(self.network, self.choices, by_name[name]),
        limit,
      )
      for name, limit in limits.items()
    ]

    def use(stacked: logit_layout.StackedLogits) -> jax.Array:
      totals = [jnp.asarray(constant) for _, constant in relative]
      for shape, paths in alike.items():
        weights, inputs = (
          stacked[count][index]
          for count, index in zip(shape, indices[shape], strict=True)
        )
        for index, (tables, _) in enumerate(relative):
          table = np.stack([tables[path] for path in paths])
          totals[index] += jnp.einsum("li,lij,lj->", weights, table, inputs)
      return jnp.stack(totals)

    return use


def known_costs(
  costs: Sequence[costs_lib.Cost] = (),
) -> tuple[costs_lib.Cost, ...]:
  """List the costs that a budget may name: BOPs, sizes and the user's.

  A user's container size, of another format, takes the place of ours.

  Raises:
    ValueError: `costs` is no list of costs.
  """
  listed = isinstance(costs, list | tuple)
  if not listed or not all(isinstance(c, costs_lib.Cost) for c in costs):
    raise ValueError(
      f"costs={checks.short(costs)}; expected a list of asga_jax.Cost, such as"
      " [asga_jax.load_latency(FILE)]."
    )
  own = any(cost.name == costs_lib.CONTAINER_SIZE.name for cost in costs)
  stored = () if own else (costs_lib.CONTAINER_SIZE,)
  return (costs_lib.BOPS, costs_lib.SIZE, *stored, *costs)


def build(model: nnx.Module, network: costs_lib.NetworkStats) -> SearchSpace:
  """Read the choices of a searchable network.

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
    node: Any = model
    for part in path:
      plain = isinstance(node, (dict, list, tuple)) or isinstance(part, int)
      node = node[part] if plain else getattr(node, str(part))
    name = program.variable_name(path[:-1])
    names[id(node)] = name
    paths[name] = path
  choices = {}
  for layer_path in network.paths:
    layer = found[layer_path]
    weight_bits = layer.weight.candidates()
    activation_bits = layer.activation.candidates()
    choices[layer_path] = policy_lib.LayerChoice(
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
  """Sort scores by group into those of weights and those of activations."""
  of_weights = {c.weight_group for c in space.choices.values()}
  of_activations = {c.activation_group for c in space.choices.values()}
  return (
    {group: by_group[group] for group in by_group if group in of_weights},
    {group: by_group[group] for group in by_group if group in of_activations},
  )
