"""Training of a network whose policy is fixed."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from asga_jax import sharpness
from asga_jax.quantization import surgery
from asga_jax.training import loop, optimizers, sharding, steps
from asga_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
  """How to train a network at a fixed policy."""

  steps: int = 300
  # One of sharpness.PRESETS, and arguments that differ from it.
  preset: str = "sgd"
  sharpness: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  learning_rate: float = 0.05
  quantizer_learning_rate: float = 1e-2
  momentum: float = 0.9
  weight_decay: float = 1e-4
  seed: int = 0


def train_policy(
  model: nnx.Module,
  batches: Iterable[Any],
  loss_fn: steps.LossFn = steps.cross_entropy,
  *,
  settings: FinetuneSettings | None = None,
  prepare: steps.PrepareFn | None = None,
  mesh: Mesh | None = None,
) -> nnx.Module:
  """Train the weights and step sizes of a network at its policy.

  Each call compiles its step once.

  Args:
    model: from `conversion.with_policy`, or any network; it is not changed. It
      is trained in training mode, whatever its own.
    batches: as many as there are steps, or more.
    loss_fn: of (model, batch) to the mean loss and a dict of figures.
    settings: how to train.
    prepare: of (key, raw batch) to what `loss_fn` takes, inside the step.
    mesh: of the axis `data`; None for all devices.

  Returns:
    A trained copy.

  Raises:
    ValueError: a bad setting, or fewer batches than steps.
    DivergedError: the loss is not finite.
  """
  settings = settings or FinetuneSettings()
  mesh = sharding.data_mesh() if mesh is None else mesh
  model = nnx.clone(model)
  model.train()
  graphdef, params, rest = state_lib.split_model(model)
  layout = state_lib.LogitLayout.of(params.logits)
  parts = steps.StepParts(
    graphdef=state_lib.split_model(surgery.holding_probabilities(model))[0],
    layout=layout,
    loss_fn=loss_fn,
    prepare=prepare or (lambda key, batch: batch),
    transform=sharpness.preset(
      settings.preset, mask=state_lib.PERTURBED, **settings.sharpness
    ),
    optimizer=optimizers.weight_optimizer(
      steps=settings.steps,
      learning_rate=settings.learning_rate,
      quantizer_learning_rate=settings.quantizer_learning_rate,
      momentum=settings.momentum,
      weight_decay=settings.weight_decay,
    ),
    # The one candidate of each tensor has nothing to learn.
    logit_optimizer=optax.set_to_zero(),
    expected_use=None,
    temperature=lambda step: jnp.float32(1),
    multiplier_rate=0.0,
  )
  state = state_lib.initial_state(
    params._replace(logits=layout.stack(params.logits)),
    rest,
    key=jax.random.key(settings.seed),
    transform=parts.transform,
    optimizer=parts.optimizer,
    logit_optimizer=parts.logit_optimizer,
    budgets=0,
  )
  state = loop.run(
    steps.compile_step(parts, mesh, bilevel=False),
    sharding.place_replicated(state, mesh),
    batches,
    settings.steps,
    mesh,
  )
  trained = state.params._replace(logits=layout.unstack(state.params.logits))
  return state_lib.merge_model(graphdef, trained, state.rest)
