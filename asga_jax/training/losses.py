"""Losses of a classifier: smoothed labels, and a teacher's answers."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from asga_jax import checks
from asga_jax.training import returned, steps

_TEMPERATURE = 4.0


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
