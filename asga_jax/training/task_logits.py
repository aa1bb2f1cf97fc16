"""The task's part of the logits, and where logits start.

The budget's penalty moves logits too, and since costs are bilinear in weight
and input bits it does not cancel between policies of equal cost. So what the
loss alone has moved is kept beside the logits, and policies are chosen by it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asga_jax.quantization import logit_layout

# Adam's, of the logits. Not measured against its own 0.9: the gradient of the
# budget's penalty turns when the expected cost crosses the budget, and is
# forgotten sooner.
B1, B2, EPS = 0.5, 0.999, 1e-8
_HALVINGS, _ROUNDS = 40, 8
_LARGEST_PRICE = 1e5

# From probabilities to the expected share of each budget, shape (budgets,).
ExpectedUse = Callable[[logit_layout.StackedLogits], jax.Array]


class TaskLogits(NamedTuple):
  """What logits would be if the budget had not moved them, as they stand."""

  moment: logit_layout.StackedLogits  # of the loss's gradient, as Adam's first
  total: logit_layout.StackedLogits  # where they started, and all updates


def optimizer(learning_rate: float) -> optax.GradientTransformation:
  """Make Adam for the logits."""
  return optax.adam(learning_rate, b1=B1, b2=B2, eps=EPS)


def init(logits: logit_layout.StackedLogits) -> TaskLogits:
  """Start from logits that are the task's alone."""
  return TaskLogits(jax.tree.map(jnp.zeros_like, logits), logits)


def update(
  task: TaskLogits,
  gradient: logit_layout.StackedLogits,
  adam: optax.OptState,
  learning_rate: float,
) -> TaskLogits:
  """Move the task's part by its share of what Adam has moved the logits by.

  Adam's update is linear in its first moment, so the shares of the loss and of
  the penalty sum up to it.

  Args:
    task: before.
    gradient: of the loss alone.
    adam: the state of `optimizer` after the update by the whole gradient.
    learning_rate: of `optimizer`.
  """
  (state, *_) = (
    x for x in jax.tree.leaves(adam, is_leaf=_is_adam) if _is_adam(x)
  )
  first, second = (1 - b**state.count for b in (B1, B2))
  moment = jax.tree.map(
    lambda before, slope: B1 * before + (1 - B1) * slope, task.moment, gradient
  )
  total = jax.tree.map(
    lambda before, m, v: (
      before - learning_rate * (m / first) / (jnp.sqrt(v / second) + EPS)
    ),
    task.total,
    moment,
    state.nu,
  )
  return TaskLogits(moment, total)


def _is_adam(state: Any) -> bool:
  return isinstance(state, optax.ScaleByAdamState)


def priced(
  logits: logit_layout.StackedLogits,
  expected_use: ExpectedUse,
  temperature: jax.Array,
) -> logit_layout.StackedLogits:
  """Take a price of bits off logits, so that their mixture meets the budget.

  The price is the smallest multiple of the marginal costs at which the expected
  cost is within every budget.

  Args:
    logits: the task's.
    expected_use: from probabilities to shares of the budgets.
    temperature: of the softmax. shape=().

  Returns:
    Logits in the same form; the same where they meet the budget.
  """

  def at(price: jax.Array) -> tuple[Any, jax.Array]:
    def better(_: int, moved: Any) -> Any:
      mixed = logit_layout.probabilities(moved, temperature)
      use, pull_back = jax.vjp(expected_use, mixed)
      (marginal,) = pull_back((use == use.max()).astype(use.dtype))
      # Half of the way, since costs of weights and of inputs hang together.
      return jax.tree.map(
        lambda now, task, cost: (now + task - price * cost) / 2,
        moved,
        logits,
        marginal,
      )

    moved = jax.lax.fori_loop(0, _ROUNDS, better, logits)
    mixed = logit_layout.probabilities(moved, temperature)
    return moved, expected_use(mixed).max()

  def halve(_: int, bounds: jax.Array) -> jax.Array:
    low, high = bounds
    middle = (low + high) / 2
    _, use = at(jnp.expm1(middle))
    return jnp.where(
      use > 1, jnp.stack([middle, high]), jnp.stack([low, middle])
    )

  bounds = jnp.stack([jnp.zeros(()), jnp.log1p(jnp.float32(_LARGEST_PRICE))])
  bounds = jax.lax.fori_loop(0, _HALVINGS, halve, bounds)
  free = expected_use(logit_layout.probabilities(logits, temperature)).max()
  moved, _ = at(jnp.expm1(bounds[1]))
  return jax.tree.map(
    lambda before, after: jnp.where(free > 1, after, before), logits, moved
  )
