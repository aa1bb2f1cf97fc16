"""Losses of a classifier: by labels, smoothed ones, and a teacher's answers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from asga_jax import checks
from asga_jax.training import returned, steps

_TEMPERATURE = 4.0


def cross_entropy(
  model: Any, batch: steps.Batch
) -> tuple[jax.Array, steps.Metrics]:
  """Compute the mean softmax cross-entropy and the accuracy.

  Args:
    model: a network from images to logits, shape (batch, ..., classes).
    batch: 'image', and 'label' of shape (batch, ...), integer.

  Returns:
    The loss, shape (), and {'accuracy': shape ()}. The loss is NaN, which ends
    a run, if a label is not in [0, classes).

  Raises:
    ValueError: a batch of another form.
  """
  checks.function("model", model)
  names = list(batch) if isinstance(batch, Mapping) else []
  if not {"image", "label"} <= {*names}:
    raise ValueError(
      f"a batch is {names or type(batch).__name__}; cross_entropy expects a"
      " dict of 'image' and 'label': hand over a loss_fn of your own for other"
      " batches."
    )
  logits = returned.check_logits(model(batch["image"]), batch["label"])
  # In half precision a sum of exponentials has three digits.
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch["label"]
  )
  losses = returned.known(batch["label"], losses, logits.shape[-1])
  correct = jnp.argmax(logits, axis=-1) == batch["label"]
  return jnp.mean(losses), {"accuracy": jnp.mean(correct.astype(losses.dtype))}


def distillation(
  logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
  """Compute T² KL(teacher || student) of softmaxes at temperature T, a mean.

  The factor keeps the gradient's scale at every temperature (Hinton et al.
  2015, arXiv 1503.02531, section 2).

  Args:
    logits: of the student, shape (batch, classes).
    teacher_logits: of the same shape.
    temperature: T, above 0.

  Returns:
    Shape ().
  """
  student = jax.nn.log_softmax(logits / temperature)
  teacher = jax.nn.log_softmax(teacher_logits / temperature)
  divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
  return temperature**2 * jnp.mean(divergence)


def make_loss(
  *,
  label_smoothing: float = 0.0,
  distillation_weight: float = 0.0,
  temperature: float = _TEMPERATURE,
) -> steps.LossFn:
  """Make the loss (1 - w) cross-entropy + w distillation.

  Args:
    label_smoothing: the share of each label that is spread evenly over all
      classes, in [0, 1).
    distillation_weight: w, in [0, 1]; above 0 the batches hold
      'teacher_logits', shape (batch, classes).
    temperature: of the distillation.

  Returns:
    What `finetune.train_policy` takes; its figures are 'accuracy' and, with a
    teacher, 'hard_loss' and 'distillation_loss'.

  Raises:
    ValueError: a value out of range.
  """
  checks.number("label_smoothing", label_smoothing, least=0, below=1)
  checks.number("distillation_weight", distillation_weight, least=0, most=1)
  checks.number("temperature", temperature, above=0)
  if not distillation_weight and temperature != _TEMPERATURE:
    raise ValueError(
      f"temperature={temperature} and distillation_weight=0, without which"
      " nothing reads it; expected a weight above 0, or no temperature."
    )

  def loss(
    model: Any, batch: steps.Batch
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    logits = returned.check_logits(model(batch["image"]), batch["label"])
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    labels = batch["label"]
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(targets, label_smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    value = jnp.mean(returned.known(labels, losses, logits.shape[-1]))
    correct = jnp.argmax(logits, axis=-1) == labels
    figures = {"accuracy": jnp.mean(correct.astype(logits.dtype))}
    if distillation_weight:
      soft = distillation(logits, batch["teacher_logits"], temperature)
      figures |= {"hard_loss": value, "distillation_loss": soft}
      value = (1 - distillation_weight) * value + distillation_weight * soft
    return value, figures

  return loss
