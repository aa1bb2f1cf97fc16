"""What a searchable network remembers of how it was made."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tabulate
from flax import nnx

from asga_jax.network import arguments, bridged, examples, kinds, program
from asga_jax.quantization import bit_choice, layers


def find_refused(
  model: nnx.Module, made: Any, float_layers: Sequence[Any]
) -> dict[str, str]:
  """List what is multiplied in float, and layers that are not called.

  Args:
    model: the float network.
    made: what `surgery.make_searchable` made of it.
    float_layers: path and MACs of what modules multiply by themselves.

  Returns:
    Path -> why it is not searched.
  """
  quantized = layers.quantized_layers(made)
  modules: dict[str, Any] = {
    program.path_name(p) or program.ITSELF: m
    for p, m in nnx.iter_modules(model)
  }
  found = dict(made.refused_calls)
  for path, module in modules.items():
    if isinstance(module, nnx.bridge.ToNNX):
      found.update(bridged.find_kernels(path.rpartition("/")[0], module))
    elif isinstance(module, nnx.Embed):
      found.setdefault(path, "Embed: it looks rows up instead of multiplying")
    elif (reason := kinds.refusal(module)) is not None:
      found.setdefault(path, f"{type(module).__name__}: {reason}")
  for layer in float_layers:
    counted = f"{layer.macs} MACs an input, counted at 32 x 32 bits"
    own = modules.get(layer.path)
    if own is not None:
      kind = type(own).__name__
      why = (
        f"{kind}: its own code multiplies ({counted}), not a product held in an"
        " attribute such as dot_general"
      )
    else:
      why = (
        f"a product of two activations ({counted}); a rule with products=True"
        " searches it"
      )
    found.setdefault(layer.path, why)
  for path in program.find_callers(model):
    if path not in quantized and path not in found:
      found[path] = "it is not called"
  return {path or program.ITSELF: why for path, why in found.items()}


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
  """List what costs are counted on.

  Args:
    model: from `searchable`.

  Returns:
    Path, MACs per image and number of weights of every layer of the deployed
    network, in call order: what a `Cost` function is called with. After them
    what modules multiply by themselves, without weights, which counts at
    32 x 32 bits.

  Raises:
    ValueError: another model.
  """
  network, _ = recall(model, "deployed_network")
  layers_of: tuple[Any, ...] = network.layers + network.float_layers
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


def is_shape(given: Any) -> bool:
  """Tell a shape, a tuple of numbers, from an example."""
  if isinstance(given, str | bytes) or not isinstance(given, Sequence):
    return False
  return all(isinstance(size, int | float | np.generic) for size in given)


def example_of(model: nnx.Module, given: Any) -> examples.Example:
  """Make the example that a network is exported on.

  Args:
    model: any; of one from `searchable` the type of its input is known.
    given: an example, as `searchable` takes it, or the shape of one input
      without the batch: of the type of the example that the network was made
      with, where that is one array of this rank; else float32.

  Returns:
    The example; of a shape, two inputs without values.

  Raises:
    ValueError: neither.
  """
  if not is_shape(given):
    return examples.as_example(given)
  shape = arguments.check_shape(given)
  dtype = np.dtype(np.float32)
  known = getattr(model, "example", None)
  if isinstance(known, tuple):
    leaves = known[0].leaves()
    if len(leaves) == 1 and len(leaves[0].shape) == len(shape) + 1:
      dtype = np.dtype(leaves[0].dtype)
  # Two, since a size of one may stand for any.
  image: Any = jax.ShapeDtypeStruct((2, *shape), dtype)
  return examples.Example(image)


def check_module(model: Any) -> None:
  """Check a network where `network` is out of sight, as `recall` does.

  Raises:
    ValueError: it is none of Flax NNX; one of Linen is told how it comes over.
  """
  if not isinstance(model, nnx.Module):
    raise ValueError(arguments.other_than(model, "a Flax nnx.Module"))


def recall(model: nnx.Module, name: str) -> Any:
  """Give what `searchable` left on a network; ValueError if it has not."""
  check_module(model)
  found = getattr(model, name, None)
  if found is None:
    raise ValueError(
      f"model ({type(model).__name__}) is not searchable; expected what "
      "asga_jax.searchable returns."
    )
  return found
