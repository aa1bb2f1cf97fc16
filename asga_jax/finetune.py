"""Training of a network whose policy is fixed."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from asga_jax import sharpness
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


class Training(NamedTuple):
  """A training that is ready to run: for those who own their loop."""

  step: Callable[..., tuple[state_lib.TrainState, steps.Metrics]]
  state: state_lib.TrainState
  graphdef: nnx.GraphDef
  layout: state_lib.LogitLayout


def start_training(
  model: nnx.Module,
  loss_fn: steps.LossFn = steps.cross_entropy,
  *,
  settings: FinetuneSettings | None = None,
  prepare: steps.PrepareFn | None = None,
  mesh: Mesh | None = None,
) -> Training:
  """Check the settings and make the compiled step.

  Takes what `train_policy` does, but for the batches.
  """
  settings = settings or FinetuneSettings()
  mesh = sharding.data_mesh() if mesh is None else mesh
  taken = state_lib.take_apart(model)
  parts = steps.StepParts(
    graphdef=taken.step_graphdef,
    layout=taken.layout,
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
    taken.params,
    taken.rest,
    key=jax.random.key(settings.seed),
    transform=parts.transform,
    optimizer=parts.optimizer,
    logit_optimizer=parts.logit_optimizer,
    budgets=0,
  )
  return Training(
    step=steps.compile_step(parts, mesh, bilevel=False),
    state=sharding.place_replicated(state, mesh),
    graphdef=taken.graphdef,
    layout=taken.layout,
  )


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
  training = start_training(
    model, loss_fn, settings=settings, prepare=prepare, mesh=mesh
  )
  state = loop.run(training.step, training.state, batches, settings.steps, mesh)
  unstacked = training.layout.unstack(state.params.logits)
  trained = state.params._replace(logits=unstacked)
  return state_lib.merge_model(training.graphdef, trained, state.rest)
