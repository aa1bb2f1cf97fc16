"""Training of a network whose policy is fixed, or of a float network."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from asga_jax import checks
from asga_jax.quantization import batch_norm, layers, logit_layout
from asga_jax.training import (
  loop,
  losses,
  optimizers,
  placement,
  sharding,
  steps,
)
from asga_jax.training import settings as setup
from asga_jax.training import state as state_lib
from asga_jax.xla import promotion

# Figures that a display of progress has room for.
SHOWN = ("loss", "accuracy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings(setup.TrainingSettings):
  """How to train a network at a fixed policy."""

  steps: int = 300
  preset: str = "sgd"
  # See optimizers.make_schedule.
  schedule: str = "cosine"
  warmup_fraction: float = 0.05
  milestones: tuple[float, ...] = (0.5, 0.75)
  decay_factor: float = 0.1
  # Of a running average of weights and step sizes, see
  # optimizers.track_average; 0 for none.
  ema_decay: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    checks.number("ema_decay", self.ema_decay, least=0, below=1)
    _optimizer(self)
    unread = ("milestones", "decay_factor") if self.schedule != "step" else ()
    for name in unread:
      value = getattr(self, name)
      if value != getattr(FinetuneSettings, name):
        raise ValueError(
          f"{name}={value} and schedule={self.schedule!r}, which does not"
          " read it; expected schedule='step', or none of its own."
        )


def _optimizer(settings: FinetuneSettings) -> optax.GradientTransformation:
  return setup.weight_optimizer(
    settings,
    schedule=settings.schedule,
    warmup_fraction=settings.warmup_fraction,
    milestones=settings.milestones,
    decay_factor=settings.decay_factor,
  )


class Training(NamedTuple):
  """A training that is ready to run: for those who own their loop."""

  step: Callable[..., tuple[state_lib.TrainState, steps.Metrics]]
  state: state_lib.TrainState
  graphdef: nnx.GraphDef
  layout: logit_layout.LogitLayout
  mesh: Mesh


@promotion.usual()
def start_training(
  model: nnx.Module,
  loss_fn: steps.LossFn = losses.cross_entropy,
  *,
  settings: FinetuneSettings | None = None,
  prepare: steps.PrepareFn | None = None,
  mesh: Mesh | None = None,
) -> Training:
  """Check the settings and make the compiled step.

  Takes what `train_policy` does, but for the batches.
  """
  settings = setup.given(settings, FinetuneSettings)
  setup.check_functions(loss_fn, prepare, mesh)
  taken = state_lib.take_apart(model, compute_dtype=settings.compute_dtype)
  optimizer = _optimizer(settings)
  if settings.ema_decay:
    average = optimizers.track_average(settings.ema_decay)
    optimizer = optax.chain(optimizer, average)
  started = setup.start_training(
    taken,
    loss_fn,
    settings=settings,
    optimizer=optimizer,
    prepare=prepare,
    mesh=mesh,
  )
  return Training(
    step=started.step,
    state=started.state,
    graphdef=taken.graphdef,
    layout=taken.layout,
    mesh=started.mesh,
  )


@promotion.usual()
def trained_model(
  training: Training, state: state_lib.TrainState, *, averaged: bool = False
) -> nnx.Module:
  """Put the network together with what has been trained.

  Args:
    training: from `start_training`.
    state: after some step.
    averaged: whether to take the running averages of weights and step sizes;
      batch norm keeps the statistics of the training.

  Returns:
    A copy in evaluation mode; further steps do not change it.

  Raises:
    ValueError: averages are asked for and were not kept.
  """
  # Copies, since the next step donates the state.
  params, rest = placement.gathered((state.params, state.rest), training.mesh)
  if averaged:
    average = optimizers.find_average(state.optimizer)
    if average is None:
      raise ValueError("ema_decay=0 keeps no average; expected it above 0.")
    params = params._replace(**placement.gathered(average, training.mesh))
  params = params._replace(logits=training.layout.unstack(params.logits))
  model: nnx.Module = state_lib.merge_model(training.graphdef, params, rest)
  model.eval()
  layers.stop_watching(model)
  return model


def taught(
  batches: Iterable[Any],
  teacher: nnx.Module,
  *,
  prepare: steps.PrepareFn,
  seed: int,
  first: int,
  mesh: Mesh,
) -> Iterator[dict[str, jax.Array]]:
  """Add a teacher's answers to batches, for `losses.make_loss`.

  The teacher sees the very images that the student is trained on, so they are
  prepared here; the step's own `prepare` must then hand them on.

  Args:
    batches: raw ones, from step `first` on.
    teacher: a network; it runs in evaluation mode.
    prepare: of (key, raw batch) to the networks' input.
    seed: of the training, which the keys come from.
    first: how many steps were done.
    mesh: of the axis `data`.

  Yields:
    Prepared batches on the mesh, with 'teacher_logits'.
  """
  teacher = nnx.clone(teacher)
  teacher.eval()
  graphdef, state = nnx.split(teacher)
  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)

  def teach(state, key, step, raw):
    data = prepare(jax.random.fold_in(key, step), raw)
    model = nnx.merge(graphdef, state, copy=True)
    return {**data, "teacher_logits": model(data["image"])}

  answer = jax.jit(
    teach, in_shardings=(whole, whole, whole, split), out_shardings=split
  )
  state = sharding.place_replicated(state, mesh)
  key = sharding.place_replicated(jax.random.key(seed), mesh)
  for step, raw in enumerate(batches, first):
    yield answer(state, key, step, sharding.place_batch(raw, mesh))


@promotion.usual()
def train_policy(
  model: nnx.Module,
  batches: Iterable[Any],
  loss_fn: steps.LossFn = losses.cross_entropy,
  *,
  settings: FinetuneSettings | None = None,
  prepare: steps.PrepareFn | None = None,
  mesh: Mesh | None = None,
  progress: bool = True,
) -> nnx.Module:
  """Train the weights and step sizes of a network at its policy.

  Each call compiles its step once.

  Args:
    model: from `conversion.with_policy` or `conversion.quantize`, or any
      network; it is not changed. It is trained in training mode, whatever its
      own.
    batches: as many as there are steps, or more.
    loss_fn: of (model, batch) to the mean loss and a dict of figures, such as
      `losses.make_loss` gives.
    settings: how to train.
    prepare: of (key, raw batch) to what `loss_fn` takes, inside the step.
    mesh: of the axis `data`; None for all devices.
    progress: whether to show steps and time left on a terminal or in a
      notebook.

  Returns:
    A trained copy in evaluation mode: the averages, if the settings ask for
    them. Its batch norm has the running statistics of the training;
    `reestimate_batch_norm` gives those of images that are not augmented.

  Raises:
    ValueError: a bad setting, or fewer batches than steps.
    DivergedError: the loss is not finite.
  """
  settings = setup.given(settings, FinetuneSettings)
  checks.flag("progress", progress)
  loop.check_batches(batches)
  training = start_training(
    model, loss_fn, settings=settings, prepare=prepare, mesh=mesh
  )
  state = loop.run_watched(
    training.step,
    training.state,
    batches,
    settings.steps,
    training.mesh,
    label="fine-tuning",
    figures=SHOWN,
    progress=progress,
    skip_nonfinite=settings.skip_nonfinite,
  )
  trained = trained_model(training, state, averaged=settings.ema_decay > 0)
  batch_norm.warn_unmoved(model, trained)
  return trained
