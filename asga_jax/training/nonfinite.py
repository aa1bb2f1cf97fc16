"""Steps that are not finite, and what becomes of them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from asga_jax.training import state as state_lib

# Figures of a step that show that it spoilt the weights.
TELLING = (
  "loss",
  "gradient_norm",
  "perturbed_gradient_norm",
  "logit_spread",
)


def left_out(
  before: state_lib.TrainState,
  after: state_lib.TrainState,
  figures: Mapping[str, jax.Array],
) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
  """Leave a step out that is not finite, and count it; no host is asked.

  Args:
    before: the state before the step.
    after: the state after it.
    figures: of the step.

  Returns:
    `after` where its parameters, statistics, loss and gradients are finite,
    else `before`, but that the number of the step moves on, and another batch
    with it; and the figures, with how many steps of the run were left out.
  """
  # A second pass that was skipped has used no radius, and measured nothing.
  no_second = jnp.isnan(figures["radius"])
  told = [
    jnp.isfinite(figures[name])
    | (no_second & (name == "perturbed_gradient_norm"))
    for name in TELLING
  ]
  # A gradient of a step size or a logit shows in what it has moved alone.
  # So does a variance that overflows, by which all is normalised to nothing.
  moved = [
    jnp.all(jnp.isfinite(x))
    for x in jax.tree.leaves((after.params, after.rest))
    if jnp.issubdtype(x.dtype, jnp.inexact)
  ]
  finite = jnp.all(jnp.stack(told + moved))

  def choose(new: Any, old: Any) -> Any:
    return jnp.where(finite, new, old)

  kept = jax.tree.map(choose, after, before)
  skipped = before.skipped + jnp.int32(~finite)
  kept = kept._replace(step=after.step, skipped=skipped)
  return kept, {**figures, "skipped": skipped}
