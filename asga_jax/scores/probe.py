"""A network of which any tensor is quantized and any other is float."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.allocation import space as search_space
from asga_jax.network import examples
from asga_jax.quantization import bit_choice, layers, quantizers, remembered


class Probe:
  """A searchable network at bits that are data: no change is compiled anew."""

  def __init__(self, model: nnx.Module, space: search_space.SearchSpace):
    """Copy a network, in evaluation mode; all of its tensors are float.

    Args:
      model: from `searchable`; it is not changed.
      space: of its choices.
    """
    _, self._method = remembered.recall(model, "example")
    self._model = nnx.clone(model)
    self._model.eval()
    # Group -> its choices with the grids and parameters of all candidates.
    self._groups: dict[str, list[tuple[Any, np.ndarray, jax.Array]]] = {}
    seen: set[int] = set()
    for path, product in layers.quantized_layers(self._model).items():
      groups = space.choices[path]
      for group, choice in (
        (groups.weight_group, product.weight),
        (groups.activation_group, product.activation),
      ):
        if id(choice) not in seen:
          seen.add(id(choice))
          kept = choice, np.asarray(choice.grid[...]), choice.parameter[...]
          choice.keep(0)
          self._groups.setdefault(group, []).append(kept)
    for group in self._groups:
      self.set_float(group)
    self._graphdef, _ = nnx.split(self._model)
    self._run = jax.jit(self._outputs)

  @property
  def candidates(self) -> Mapping[str, tuple[int, ...]]:
    """The candidate bit-widths of every group."""
    return {
      group: tuple(choices[0][1][0].astype(int).tolist())
      for group, choices in self._groups.items()
    }

  def set_float(self, group: str) -> None:
    """Leave the tensors of a group as they are."""
    for choice, grids, parameter in self._groups[group]:
      _set(choice, grids[:, :1], parameter[:1])
      choice.grid[...] = choice.grid[...].at[0].set(quantizers.FLOAT_BITS)

  def set_candidate(self, group: str, index: int) -> None:
    """Quantize the tensors of a group at one of its candidates."""
    for choice, grids, parameter in self._groups[group]:
      kept = slice(index, index + 1)
      _set(choice, grids[:, kept], parameter[kept])

  def outputs(self, batches: Iterable[examples.Example]) -> list[Any]:
    """Run the network on batches; arrays that may still be computed."""
    state = nnx.state(self._model)
    return [self._run(state, batch) for batch in batches]

  def _outputs(self, state: Any, batch: examples.Example) -> Any:
    model = nnx.merge(self._graphdef, state, copy=True)
    return batch.call(getattr(model, self._method))


def _set(
  choice: bit_choice.BitChoice, grid: np.ndarray, parameter: jax.Array
) -> None:
  choice.grid[...] = jnp.asarray(grid)
  choice.parameter[...] = parameter
