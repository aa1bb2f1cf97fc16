"""What a step tells of the state that it leaves."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from asga_jax import sharpness
from asga_jax.quantization import logit_layout
from asga_jax.training import state as state_lib

# Figure of a step -> field of the transformation's state.
OF_SHARPNESS = {
  "gap": "raw_gap",
  "smoothed_gap": "gap",
  "radius": "radius",
  "perturbed_loss": "perturbed_value",
  "cosine": "cosine",
  "gradient_norm": "gradient_norm",
  "perturbed_gradient_norm": "perturbed_gradient_norm",
}


def of_state(
  state: state_lib.TrainState,
  temperature: jax.Array,
  expected_use: Callable[[logit_layout.StackedLogits], jax.Array] | None,
) -> dict[str, jax.Array]:
  """Give the figures of sharpness, logits and budgets.

  Args:
    state: after the step.
    temperature: of the step. shape=().
    expected_use: of stacked probabilities, to expected cost over budget, of
      shape (budgets,); None without a budget.

  Returns:
    Figures by name, each of shape (); those of the second and later budgets
    with `_1` and so on behind their name.
  """
  measured = sharpness.diagnostics(state.sharpness)
  figures = {
    **{name: measured[field] for name, field in OF_SHARPNESS.items()},
    "temperature": temperature,
    "logit_spread": _spread(state.params.logits),
  }
  if expected_use is not None:
    use = expected_use(
      logit_layout.probabilities(state.params.logits, temperature)
    )
    for index in range(state.multiplier.size):
      suffix = "" if index == 0 else f"_{index}"
      figures[f"expected_use{suffix}"] = use[index]
      figures[f"multiplier{suffix}"] = state.multiplier[index]
  return figures


def _spread(logits: logit_layout.StackedLogits) -> jax.Array:
  """Give the mean over searched tensors of highest minus lowest logit."""
  spreads = [
    jnp.max(rows, axis=1) - jnp.min(rows, axis=1)
    for count, rows in logits.items()
    if count > 1
  ]
  return jnp.mean(jnp.concatenate(spreads)) if spreads else jnp.zeros(())
