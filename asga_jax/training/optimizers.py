"""The optimizers of weights, step sizes and logits, and their schedules."""

from typing import Any

import jax
import optax


def weight_optimizer(
  *,
  steps: int,
  learning_rate: float,
  quantizer_learning_rate: float,
  momentum: float,
  weight_decay: float,
  warmup_fraction: float = 0.05,
) -> optax.GradientTransformation:
  """Make SGD for the weights and Adam for the quantizers' parameters.

  SGD has Nesterov momentum, which is this project's choice.

  Both follow a cosine after a linear warm-up. Weight decay holds for leaves of
  two and more axes only: kernels, not biases, norms or step sizes.

  Args:
    steps: the length of the schedule.
    learning_rate: the highest rate of the weights.
    quantizer_learning_rate: the highest rate of the quantizers.
    momentum: of SGD, in [0, 1).
    weight_decay: at least 0.
    warmup_fraction: the share of the steps that warm up, in [0, 1).

  Returns:
    A transformation of {'weights': ..., 'quantizers': ...}.

  Raises:
    ValueError: a value out of range.
  """
  checks: dict[str, tuple[float, bool, str]] = {
    "steps": (steps, steps >= 1, "at least 1"),
    "learning_rate": (learning_rate, learning_rate >= 0, "at least 0"),
    "quantizer_learning_rate": (
      quantizer_learning_rate,
      quantizer_learning_rate >= 0,
      "at least 0",
    ),
    "momentum": (momentum, 0 <= momentum < 1, "in [0, 1)"),
    "weight_decay": (weight_decay, weight_decay >= 0, "at least 0"),
    "warmup_fraction": (
      warmup_fraction,
      0 <= warmup_fraction < 1,
      "in [0, 1)",
    ),
  }
  for name, (value, fits, accepted) in checks.items():
    if not fits:
      raise ValueError(f"{name}={value}; expected {accepted}.")

  def schedule(peak: float) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(
      init_value=peak / 10,
      peak_value=peak,
      warmup_steps=max(1, int(warmup_fraction * steps)),
      decay_steps=max(2, steps),
    )

  def kernels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

  return optax.partition(
    {
      "weights": optax.chain(
        optax.add_decayed_weights(weight_decay, mask=kernels),
        optax.sgd(schedule(learning_rate), momentum=momentum, nesterov=True),
      ),
      # Step sizes span orders of magnitude between 2 and 8 bits, so they are
      # trained by their relative size.
      # Flattened, they are one tensor to compile instead of hundreds.
      "quantizers": flatten(
        optax.chain(
          optax.scale_by_adam(),
          scale_by_own_size(),
          optax.scale_by_learning_rate(schedule(quantizer_learning_rate)),
        )
      ),
    },
    {"weights": "weights", "quantizers": "quantizers"},
  )


def flatten(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Do `optax.flatten`, which fails where there are no parameters at all."""
  flat = optax.flatten(inner)

  def init(params):
    return flat.init(params) if jax.tree.leaves(params) else optax.EmptyState()

  def update(updates, state, params=None):
    if not jax.tree.leaves(updates):
      return updates, state
    return flat.update(updates, state, params)

  return optax.GradientTransformation(init, update)


def scale_by_own_size() -> optax.GradientTransformation:
  """Multiply every update by the parameter's own size, elementwise."""

  def update(updates, params):
    return jax.tree.map(
      lambda update, param: update * jax.numpy.abs(param), updates, params
    )

  return optax.stateless(update)
