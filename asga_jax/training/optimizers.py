"""The optimizer of weights and step sizes, its schedules, running averages."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asga_jax import checks

SCHEDULES = ("cosine", "step", "constant")


def make_schedule(
  kind: str,
  peak: float,
  steps: int,
  *,
  warmup_fraction: float = 0.05,
  milestones: Sequence[float] = (0.5, 0.75),
  decay_factor: float = 0.1,
) -> optax.Schedule:
  """Make a schedule of the learning rate: a warm-up, then one of `SCHEDULES`.

  The warm-up rises linearly from a tenth of the peak. After it 'cosine' falls
  to zero at the last step, 'step' falls at each milestone, 'constant' stays.

  Args:
    kind: one of `SCHEDULES`.
    peak: the highest rate.
    steps: the length of the schedule.
    warmup_fraction: the share of the steps that warm up, in [0, 1): at least
      one step, but for 0.
    milestones: for 'step': shares of the steps, increasing, above
      `warmup_fraction` and below 1.
    decay_factor: for 'step': what each milestone multiplies the rate by, in
      (0, 1].

  Raises:
    ValueError: a value out of range.
  """
  checks.choice("schedule", kind, SCHEDULES)
  checks.number("warmup_fraction", warmup_fraction, least=0, below=1)
  checks.number("decay_factor", decay_factor, above=0, most=1)
  accepted = f"increasing shares between {warmup_fraction} and 1"
  if not isinstance(milestones, tuple | list):
    raise checks.refusal("milestones", milestones, accepted)
  for index, share in enumerate(milestones):
    checks.number(f"milestones[{index}]", share)
  shares = (warmup_fraction, *milestones, 1)
  if kind == "step" and any(a >= b for a, b in itertools.pairwise(shares)):
    raise checks.refusal("milestones", tuple(milestones), accepted)
  warmup = max(1, int(warmup_fraction * steps)) if warmup_fraction else 0
  if kind == "cosine" and warmup:
    return optax.warmup_cosine_decay_schedule(
      init_value=peak / 10,
      peak_value=peak,
      warmup_steps=warmup,
      decay_steps=max(2, steps),
    )
  if kind == "cosine":
    return optax.cosine_decay_schedule(peak, max(1, steps))
  falls: dict[int, float] = {}
  for share in milestones if kind == "step" else ():
    at = round(share * steps) - warmup
    falls[at] = falls.get(at, 1.0) * decay_factor
  after = optax.piecewise_constant_schedule(peak, falls)
  if not warmup:
    return after
  rise = optax.linear_schedule(peak / 10, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])


def weight_optimizer(
  *,
  steps: int,
  learning_rate: float,
  quantizer_learning_rate: float,
  momentum: float,
  weight_decay: float,
  schedule: str = "cosine",
  **schedule_settings: Any,
) -> optax.GradientTransformation:
  """Make SGD for the weights and Adam for the quantizers' parameters.

  SGD has Nesterov momentum, which is this project's choice.

  Both follow one schedule. Weight decay holds for leaves of two and more axes
  only: kernels, not biases, norms or step sizes.

  Args:
    steps: the length of the schedule.
    learning_rate: the highest rate of the weights.
    quantizer_learning_rate: the highest rate of the quantizers.
    momentum: of SGD, in [0, 1).
    weight_decay: at least 0.
    schedule: one of `SCHEDULES`.
    **schedule_settings: see `make_schedule`.

  Returns:
    A transformation of {'weights': ..., 'quantizers': ...}.

  Raises:
    ValueError: a value out of range.
  """
  checks.number("steps", steps, least=1, whole=True)
  checks.number("learning_rate", learning_rate, least=0)
  checks.number("quantizer_learning_rate", quantizer_learning_rate, least=0)
  checks.number("momentum", momentum, least=0, below=1)
  checks.number("weight_decay", weight_decay, least=0)

  def rate(peak: float) -> optax.Schedule:
    return make_schedule(schedule, peak, steps, **schedule_settings)

  def kernels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

  return optax.partition(
    {
      "weights": optax.chain(
        optax.add_decayed_weights(weight_decay, mask=kernels),
        optax.sgd(rate(learning_rate), momentum=momentum, nesterov=True),
      ),
      # Step sizes span orders of magnitude between 2 and 8 bits, so they are
      # trained by their relative size.
      # Flattened, they are one tensor to compile instead of hundreds.
      "quantizers": flatten(
        optax.chain(
          optax.scale_by_adam(),
          scale_by_own_size(),
          optax.scale_by_learning_rate(rate(quantizer_learning_rate)),
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
      lambda update, param: update * jnp.abs(param), updates, params
    )

  return optax.stateless(update)


class AverageState(NamedTuple):
  """What `track_average` carries on."""

  updates_seen: jax.Array  # shape=(), dtype=int32
  average: Any  # of the structure, shapes and dtypes of the parameters


def effective_decay(updates_seen: jax.Array, decay: float) -> jax.Array:
  """Give the decay of one update, min(decay, (1 + n) / (10 + n)).

  So a short run's average forgets where it started; the rule is that of
  TensorFlow's ExponentialMovingAverage with `num_updates`.
  """
  seen = jnp.asarray(updates_seen, jnp.float32)
  return jnp.minimum(jnp.float32(decay), (1 + seen) / (10 + seen))


def track_average(decay: float) -> optax.GradientTransformation:
  """Average the parameters that result from the updates handed through.

  It must be the last of a chain: it leaves the updates as they are.

  Args:
    decay: the most that is kept of the average at an update, in (0, 1).

  Raises:
    ValueError: a decay out of range.
  """
  if not 0 < decay < 1:
    raise ValueError(f"decay={decay}; expected above 0 and below 1.")

  def init(params):
    copied = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    return AverageState(jnp.zeros((), jnp.int32), copied)

  def update(updates, state, params):
    kept = effective_decay(state.updates_seen, decay)
    average = jax.tree.map(
      lambda old, new: (kept * old + (1 - kept) * new).astype(old.dtype),
      state.average,
      optax.apply_updates(params, updates),
    )
    return updates, AverageState(state.updates_seen + 1, average)

  return optax.GradientTransformation(init, update)


def find_average(optimizer_state: optax.OptState) -> Any:
  """Find the average in the state of a chain; None without one."""
  return optax.tree.get(optimizer_state, "average")
