"""A searchable network whose tensors are set to one candidate, or to float."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.allocation import space as search_space
from asga_jax.quantization import (
  bit_choice,
  compensation,
  layers,
  quantizers,
  rounding,
)


class Candidates:
  """A copy of a network at bits that are data: no change is compiled anew."""

  def __init__(self, model: nnx.Module, space: search_space.SearchSpace):
    """Copy a network, in evaluation mode; all of its tensors are float.

    Args:
      model: from `searchable`; it is not changed.
      space: of its choices.
    """
    self.model = nnx.clone(model)
    self.model.eval()
    self._space = space
    # Group -> its choices with the grids and parameters of all candidates.
    self._groups: dict[str, list[tuple[Any, np.ndarray, jax.Array]]] = {}
    seen: set[int] = set()
    for path, product in layers.quantized_layers(self.model).items():
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
    # Group -> path -> its kernel with its float values and moments.
    self._kernels: dict[str, dict[str, tuple[Any, jax.Array, Any]]] = {}
    # Path -> what serves all candidates, until the kernel is float again.
    self._solved: dict[str, compensation.Solved] = {}
    self._centred = rounding.means_corrected(self.model)
    # Group -> index of the candidate that is set, None for float.
    self._chosen: dict[str, int | None] = {}
    for group in self._groups:
      self.set_float(group)

  def round_on(self, batches: Sequence[Any]) -> None:
    """Round the kernels of what is set from now on, see `round_weights`.

    Args:
      batches: inputs to round on; all tensors are float.
    """
    kernels = layers.kernel_layers(self.model)
    for path, found in rounding.gather_moments(self.model, batches).items():
      each = kernels[path], kernels[path].kernel[...], found
      group = self._space.choices[path].weight_group
      self._kernels.setdefault(group, {})[path] = each

  @property
  def widths(self) -> Mapping[str, tuple[int, ...]]:
    """The candidate bit-widths of every group."""
    return {
      group: tuple(choices[0][1][0].astype(int).tolist())
      for group, choices in self._groups.items()
    }

  def set_float(self, group: str) -> None:
    """Leave the tensors of a group as they are."""
    self._chosen[group] = None
    for choice, grids, parameter in self._groups[group]:
      _set(choice, grids[:, :1], parameter[:1])
      choice.grid[...] = choice.grid[...].at[0].set(quantizers.FLOAT_BITS)
    for path, (layer, kernel, _) in self._kernels.get(group, {}).items():
      layer.kernel[...] = kernel
      self._solved.pop(path, None)

  def set_candidate(self, group: str, index: int) -> None:
    """Quantize the tensors of a group at one of its candidates."""
    if self._chosen[group] == index:
      return
    self._chosen[group] = index
    for choice, grids, parameter in self._groups[group]:
      kept = slice(index, index + 1)
      _set(choice, grids[:, kept], parameter[kept])
    for path, (layer, kernel, moments) in self._kernels.get(group, {}).items():
      layer.kernel[...] = kernel
      if layer.product.weight.candidates() == (quantizers.FLOAT_BITS,):
        continue
      if path not in self._solved:
        self._solved[path] = rounding.solve(
          layer, moments, centred=path in self._centred
        )
      layer.kernel[...] = rounding.rounded_kernel(layer, self._solved[path])


def _set(
  choice: bit_choice.BitChoice, grid: np.ndarray, parameter: jax.Array
) -> None:
  choice.grid[...] = jnp.asarray(grid)
  choice.parameter[...] = parameter
