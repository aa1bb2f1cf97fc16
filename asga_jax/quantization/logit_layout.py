"""The logits of all bit choices as a few arrays, one a number of candidates."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from asga_jax.quantization import bit_choice

# Number of candidates n -> shape=(tensors, n), float32.
StackedLogits = dict[int, jax.Array]


@dataclasses.dataclass(frozen=True)
class LogitLayout:
  """Which row of the stacked logits belongs to which variable.

  So a step treats all tensors in a few operations, whatever their number.
  """

  # Number of candidates -> paths of the variables, in the order of the rows.
  rows: Mapping[int, tuple[tuple[Any, ...], ...]]

  @classmethod
  def of(cls, logits: nnx.State) -> "LogitLayout":
    """Read the layout from a state of `BitLogits`."""
    rows: dict[int, list[tuple[Any, ...]]] = {}
    for path, leaf in nnx.to_flat_state(logits):
      rows.setdefault(leaf.size, []).append(path)
    return cls({count: tuple(paths) for count, paths in sorted(rows.items())})

  def stack(self, logits: nnx.State) -> StackedLogits:
    """Stack the leaves of a state."""
    flat = dict(nnx.to_flat_state(logits))
    return {
      count: jnp.stack([flat[path] for path in paths])
      for count, paths in self.rows.items()
    }

  def unstack(self, stacked: StackedLogits) -> nnx.State:
    """Put the rows back into a state."""
    return nnx.from_flat_state(
      [
        (path, stacked[count][row])
        for count, paths in self.rows.items()
        for row, path in enumerate(paths)
      ]
    )


def probabilities(
  logits: StackedLogits, temperature: jax.Array
) -> StackedLogits:
  """Compute the probabilities of all tensors, as their logits are stacked."""
  return {
    count: bit_choice.probabilities(rows, temperature)
    for count, rows in logits.items()
  }


def sample(key: jax.Array, mixed: StackedLogits) -> StackedLogits:
  """Draw one candidate of each tensor.

  Args:
    key: of the draw.
    mixed: probabilities of all tensors, stacked.

  Returns:
    In the same form 1 for what was drawn, 0 for the rest.
  """
  found = {}
  for count, rows in mixed.items():
    drawn = jax.random.categorical(
      jax.random.fold_in(key, count), jnp.log(rows)
    )
    found[count] = jax.nn.one_hot(drawn, count, dtype=rows.dtype)
  return found
