"""What a searchable network remembers of how it was made."""

from typing import Any

import tabulate
from flax import nnx

from asga_jax.quantization import bit_choice, layers


def not_searched(model: nnx.Module) -> dict[str, str]:
  """List what has a kernel and stays float in a searchable network.

  Args:
    model: from `searchable`.

  Returns:
    Path -> reason.

  Raises:
    ValueError: another model.
  """
  return dict(recall(model, "refused_layers"))


def layer_stats(model: nnx.Module) -> tuple[Any, ...]:
  """List what costs are counted on: what a `Cost` function is called with.

  Args:
    model: from `searchable`.

  Returns:
    Path, MACs per image and number of weights of every layer of the deployed
    network, in call order.

  Raises:
    ValueError: another model.
  """
  network, _ = recall(model, "deployed_network")
  layers_of: tuple[Any, ...] = network.layers
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
  for path, rule, *ties in recall(model, "decided_by"):
    layer = quantized[path]
    pairs = zip((layer.weight, layer.activation), ties, strict=True)
    rows.append((path, *(text(*pair) for pair in pairs), rule))
  return tabulate.tabulate(rows, tablefmt="plain", disable_numparse=True)


def recall(model: nnx.Module, name: str) -> Any:
  """Give what `searchable` left on a network; ValueError if it has not."""
  found = getattr(model, name, None)
  if found is None:
    raise ValueError(
      f"model ({type(model).__name__}) is not searchable; expected what "
      "asga_jax.searchable returns."
    )
  return found
