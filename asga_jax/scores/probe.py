"""A network of which any tensor is quantized and any other is float."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from asga_jax import checks
from asga_jax.allocation import space as search_space
from asga_jax.network import examples
from asga_jax.quantization import (
  bit_choice,
  compensation,
  correction,
  layers,
  quantizers,
  remembered,
  rounding,
)

# Of (outputs of the float network, of the quantized one) to one number an
# input, shape (batch,), at least 0.
Divergence = Callable[[Any, Any], jax.Array]


class Probe:
  """A searchable network at bits that are data: no change is compiled anew."""

  def __init__(
    self,
    model: nnx.Module,
    space: search_space.SearchSpace,
    batches: Sequence[examples.Example],
    *,
    divergence: Divergence,
    corrected: bool,
    radius: float = 0.0,
    rounded_on: Sequence[Any] = (),
  ):
    """Copy a network, in evaluation mode; all of its tensors are float.

    Args:
      model: from `searchable`; it is not changed.
      space: of its choices.
      batches: what it is run on.
      divergence: of outputs from those of the float network.
      corrected: whether norms and biases are corrected on the way, on each
        batch by itself, see `correct_bias`.
      radius: how far weights are moved to where the divergence rises most,
        before it is measured.
      rounded_on: inputs that kernels are rounded on, see `round_weights`; none
        to round to the nearest.
    """
    _, self._method = remembered.recall(model, "example")
    self._batches = batches
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
    # Group -> path -> its kernel with its float values and moments.
    self._kernels: dict[str, dict[str, tuple[Any, jax.Array, Any]]] = {}
    # Path -> what serves all candidates, until the kernel is float again.
    self._solved: dict[str, compensation.Solved] = {}
    self._centred = rounding.means_corrected(self._model)
    # Group -> index of the candidate that is set, None for float.
    self._chosen: dict[str, int | None] = {}
    for group in self._groups:
      self.set_float(group)
    kernels = layers.kernel_layers(self._model)
    moments = (
      rounding.gather_moments(self._model, rounded_on) if rounded_on else {}
    )
    for path, found in moments.items():
      each = kernels[path], kernels[path].kernel[...], found
      group = space.choices[path].weight_group
      self._kernels.setdefault(group, {})[path] = each
    self._taps = tuple(correction.find_taps(self._model) if corrected else ())
    self._graphdef, state = nnx.split(self._model)
    noting = jax.jit(self._noting)
    noted = [noting(state, batch) for batch in batches]
    # What the float network gives for every batch.
    self.references = [outputs for outputs, _ in noted]
    self._moments = [each for _, each in noted]
    self._divergence, self._radius = divergence, radius
    for each in self.references:
      _check_divergence(divergence, each)
    self._run = jax.jit(self._apart)

  @property
  def candidates(self) -> Mapping[str, tuple[int, ...]]:
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

  def measure(self) -> float:
    """Give the mean divergence over all inputs of all batches."""
    state = nnx.state(self._model)
    each = [
      self._run(state, *given)
      for given in zip(
        self._batches, self._moments, self.references, strict=True
      )
    ]
    return float(np.mean(np.concatenate([np.asarray(x) for x in each])))

  def _noting(self, state: Any, batch: examples.Example) -> Any:
    model = nnx.merge(self._graphdef, state, copy=True)
    call = functools.partial(batch.call, getattr(model, self._method))
    return correction.call_noting(model, self._taps, call)

  def _apart(
    self,
    state: Any,
    batch: examples.Example,
    moments: correction.Moments,
    reference: Any,
  ) -> jax.Array:
    """Give the divergence of each input of a batch."""
    weights, rest = nnx.split_state(state, nnx.Param, ...)

    def apart(weights: Any) -> jax.Array:
      model = nnx.merge(self._graphdef, weights, rest, copy=True)
      call = functools.partial(batch.call, getattr(model, self._method))
      outputs, _ = correction.call_corrected(model, moments, call)
      return self._divergence(reference, outputs)

    if self._radius:
      slopes = jax.grad(lambda weights: jnp.mean(apart(weights)))(weights)
      norm = optax.tree.norm(slopes)
      share = self._radius / jnp.where(norm > 0, norm, 1)
      weights = jax.tree.map(lambda w, g: w + share * g, weights, slopes)
    return apart(weights)


def _check_divergence(divergence: Divergence, outputs: Any) -> None:
  """Check before long work that it takes outputs; raises ValueError."""
  try:
    found = jax.eval_shape(divergence, outputs, outputs)
    shape, kind = found.shape, found.dtype
    if len(shape) != 1 or not jnp.issubdtype(kind, jnp.floating):
      raise ValueError(f"it gives {kind} of shape {shape}")
  except Exception as error:
    raise ValueError(
      f"divergence={checks.short(divergence)} does not take what the network"
      f" gives: {checks.reason(error)}; expected a function of two outputs, the"
      " float network's first, to a number an input."
    ) from error


def _set(
  choice: bit_choice.BitChoice, grid: np.ndarray, parameter: jax.Array
) -> None:
  choice.grid[...] = jnp.asarray(grid)
  choice.parameter[...] = parameter
