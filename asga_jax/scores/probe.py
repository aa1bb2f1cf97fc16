"""How far the outputs of a network at some bits are from the float one's."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from asga_jax import checks
from asga_jax.allocation import space as search_space
from asga_jax.network import examples
from asga_jax.quantization import correction, remembered
from asga_jax.scores import candidates

# Of (outputs of the float network, of the quantized one) to one number an
# input, shape (batch,), at least 0.
Divergence = Callable[[Any, Any], jax.Array]


class Probe:
  """Measures a network's divergence at bits that are data."""

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
    self.candidates = candidates.Candidates(model, space)
    if rounded_on:
      self.candidates.round_on(rounded_on)
    self._model = self.candidates.model
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
