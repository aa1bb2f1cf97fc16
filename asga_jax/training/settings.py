"""What every training starts from: settings, compiled step, first state."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import ml_collections
import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from asga_jax import checks
from asga_jax import sharpness as sharpness_lib
from asga_jax.training import (
  compiled,
  optimizers,
  placement,
  returned,
  sharding,
  steps,
)
from asga_jax.training import state as state_lib
from asga_jax.xla import promotion

# Of the sharpness settings of configurations and searches, for the presets that
# read them.
SHARPNESS_DEFAULTS = {"rho_max": 0.05, "phi": 2e-3, "gap_ema": 0.9}


# Of what part of a batch something is taken: of all, or of each device's own.
PARTS = ("global", "shard")
COMPUTE_DTYPES = ("float32", "bfloat16")

# Whole numbers, and the least that each may be.
_COUNTS = {"steps": 1, "accumulate": 1, "skip_nonfinite": 0, "model_devices": 1}
_CHOICES = {
  "preset": tuple(sharpness_lib.PRESETS),
  "perturbation": PARTS,
  "batch_norm": PARTS,
  "compute_dtype": COMPUTE_DTYPES,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
  """How to train weights and step sizes; the base of all recipes' settings."""

  # Steps of the schedule.
  steps: int
  # One of sharpness.PRESETS, and arguments of `asga_transform` that differ from
  # it. One that the preset does not read is an error, unless it has its value
  # in SHARPNESS_DEFAULTS.
  preset: str
  sharpness: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  learning_rate: float = 0.05
  quantizer_learning_rate: float = 1e-2
  momentum: float = 0.9
  weight_decay: float = 1e-4
  seed: int = 0
  # Where parts of the state lie, see placement.Rule: (("weights/", "data"),)
  # splits weights and their momenta over the devices that share a batch.
  shard: tuple[Any, ...] = ()
  # 'global': weights are perturbed by the gradient of the whole batch; 'shard':
  # on each device by that of its own part, batch norm with it.
  perturbation: str = "global"
  # 'global': batch norm takes its statistics from the whole batch (of a pass or
  # a micro-batch); 'shard': on each device from its own part.
  batch_norm: str = "global"
  # How many micro-batches a batch is split into, one after the other: less
  # memory for activations, see accumulation.accumulated.
  accumulate: int = 1
  # What layers compute in, see quantization.compute; parameters and their
  # perturbation, quantizers, statistics and the loss are float32 in any case.
  compute_dtype: str = "float32"
  # How many steps of a run may be left out because they are not finite.
  skip_nonfinite: int = 0
  # Devices along the mesh's axis `model`, where a mesh is not given.
  model_devices: int = 1

  def __post_init__(self):
    for name, least in _COUNTS.items():
      checks.number(name, getattr(self, name), least=least, whole=True)
    checks.number("seed", self.seed, whole=True)
    for name, accepted in _CHOICES.items():
      checks.choice(name, getattr(self, name), accepted)
    placement.check_rules(self.shard)
    make_transform(self)
    weight_optimizer(self)


def make_transform(settings: TrainingSettings) -> sharpness_lib.Transformation:
  """Make the transformation of the gradients that the settings name.

  Raises:
    ValueError: a bad argument of the preset, or one that it does not read.
  """
  if not isinstance(settings.sharpness, Mapping) or not all(
    isinstance(name, str) for name in settings.sharpness
  ):
    accepted = "a dict of arguments of asga_transform, such as {'rho_max': 0.1}"
    raise checks.refusal("sharpness", settings.sharpness, accepted)
  given = dict(settings.sharpness)
  try:
    for name in sharpness_lib.unread_by(settings.preset, given):
      if given[name] == SHARPNESS_DEFAULTS.get(name):
        del given[name]
    estimate = {"gap_from_gradients": True}
    if settings.compute_dtype != "float32":
      read = not sharpness_lib.unread_by(settings.preset, estimate)
      # The difference of two losses drowns in what a pass is rounded to.
      given = estimate | given if read else given
    if settings.perturbation == "shard":
      given["axis_name"] = sharding.DATA_AXIS
    return sharpness_lib.preset(
      settings.preset, mask=state_lib.PERTURBED, **given
    )
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"sharpness of preset={settings.preset!r}: {error}"
    ) from error


_Settings = TypeVar("_Settings", bound=TrainingSettings)


def settings_group(settings: TrainingSettings) -> ml_collections.ConfigDict:
  """Make the group of a configuration that holds settings.

  Arguments of `sharpness.asga_transform` stand under `sharpness`; None leaves
  the preset's own, and so does what SHARPNESS_DEFAULTS gives where the preset
  does not read it.
  """
  group = ml_collections.ConfigDict(dataclasses.asdict(settings))
  placeholder = config_dict.placeholder
  group.sharpness = ml_collections.ConfigDict(
    {
      **SHARPNESS_DEFAULTS,
      "align": placeholder(float),
      "radius": placeholder(str),
      "rho_min": placeholder(float),
      "cap_align": placeholder(bool),
      "gsam_alpha": placeholder(float),
      "gap_from_gradients": placeholder(bool),
      "ascent": placeholder(str),
      "ascent_every": placeholder(int),
    }
  )
  return group


def read_settings(
  kind: type[_Settings], group: ml_collections.ConfigDict
) -> _Settings:
  """Make settings of the group that `settings_group` made.

  Args:
    kind: of the settings.
    group: it may hold other keys beside theirs.

  Raises:
    ValueError: a bad value.
  """
  given: dict[str, Any] = group.to_dict()
  values = {field.name: given[field.name] for field in dataclasses.fields(kind)}
  for name, value in values.items():
    if isinstance(value, list):
      values[name] = tuple(value)
  values["sharpness"] = {
    name: value
    for name, value in values["sharpness"].items()
    if value is not None
  }
  return kind(**values)


def given(settings: Any, kind: Callable[[], _Settings]) -> _Settings:
  """Give settings, those of their kind for None; ValueError for others."""
  found: _Settings = kind() if settings is None else settings
  checks.instance("settings", found, kind, f"asga_jax.{kind.__name__}")
  return found


def weight_optimizer(
  settings: TrainingSettings, **schedule: Any
) -> optax.GradientTransformation:
  """Make the optimizer of weights and step sizes.

  Args:
    settings: rates, momentum, decay and steps.
    **schedule: see `optimizers.weight_optimizer`.

  Raises:
    ValueError: a value out of range.
  """
  return optimizers.weight_optimizer(
    steps=settings.steps,
    learning_rate=settings.learning_rate,
    quantizer_learning_rate=settings.quantizer_learning_rate,
    momentum=settings.momentum,
    weight_decay=settings.weight_decay,
    **schedule,
  )


def check_functions(loss_fn: Any, prepare: Any, mesh: Any) -> None:
  """Check what a training takes beside its settings; raises ValueError."""
  checks.function("loss_fn", loss_fn)
  if prepare is not None:
    checks.function("prepare", prepare)
  checks.instance("mesh", mesh, Mesh | None, "a jax.sharding.Mesh")


def checked_prepare(prepare: steps.PrepareFn | None) -> steps.PrepareFn:
  """Say of a preparation that fails that it was this."""

  def prepared(key: jax.Array, batch: Any) -> Any:
    try:
      return batch if prepare is None else prepare(key, batch)
    except Exception as error:
      raise returned.not_run("prepare", error, batch) from error

  return prepared


class Start(NamedTuple):
  """A training before its first step."""

  step: Any  # of (state, batch) or (state, batch, heldout), jitted
  state: state_lib.TrainState
  parts: steps.StepParts
  mesh: Mesh


@promotion.usual()
def start_training(
  taken: state_lib.Trainable,
  loss_fn: steps.LossFn,
  *,
  settings: TrainingSettings,
  optimizer: optax.GradientTransformation,
  prepare: steps.PrepareFn | None,
  mesh: Mesh | None,
  logit_optimizer: optax.GradientTransformation | None = None,
  budgets: int = 0,
  bilevel: bool = False,
  **choosing: Any,
) -> Start:
  """Make the step and the state of a training.

  Args:
    taken: the network, from `state.take_apart`.
    loss_fn: of (model, batch) to the mean loss and a dict of figures.
    settings: preset, its arguments, and the seed.
    optimizer: of weights and step sizes.
    prepare: of (key, raw batch) to what `loss_fn` takes, inside the step; None
      hands the batch on.
    mesh: of the axis `data`, explicit or not; None for all devices.
    logit_optimizer: None where there is nothing to choose.
    budgets: how many.
    bilevel: whether the step takes a held-out batch too.
    **choosing: further fields of `steps.StepParts`, for a search.

  Raises:
    ValueError: bad arguments of the preset.
  """
  if mesh is None:
    mesh = sharding.data_mesh(model=settings.model_devices)
  mesh = sharding.propagated(mesh)
  parts = steps.StepParts(
    graphdef=taken.step_graphdef,
    layout=taken.layout,
    loss_fn=loss_fn,
    prepare=checked_prepare(prepare),
    transform=make_transform(settings),
    optimizer=optimizer,
    # The one candidate of each tensor has nothing to learn.
    logit_optimizer=logit_optimizer or optax.set_to_zero(),
    shards=mesh if settings.perturbation == "shard" else None,
    norm_shards=(
      mesh
      if (settings.perturbation, settings.batch_norm) == ("global", "shard")
      else None
    ),
    accumulate=settings.accumulate,
    skips_nonfinite=settings.skip_nonfinite > 0,
    **choosing,
  )
  initial_state = functools.partial(
    state_lib.initial_state,
    transform=parts.transform,
    optimizer=parts.optimizer,
    logit_optimizer=parts.logit_optimizer,
    budgets=budgets,
    skips_nonfinite=parts.skips_nonfinite,
  )
  key = jax.random.key(settings.seed)
  known = taken.params, taken.rest, key
  if settings.shard:
    # What is made in parts is never whole on a device.
    shapes = jax.eval_shape(initial_state, *known)
    lies = placement.state_shardings(shapes, mesh, settings.shard)
    known = sharding.put(
      known, (lies.params, lies.rest, sharding.replicated(mesh))
    )
    state = jax.jit(initial_state, out_shardings=lies)(*known)
  else:
    # One program; array by array it would be hundreds.
    state = jax.jit(initial_state)(*known)
  step, state = placed(parts, state, mesh, settings, bilevel=bilevel)
  return Start(step, state, parts, mesh)


def placed(
  parts: steps.StepParts,
  state: state_lib.TrainState,
  mesh: Mesh,
  settings: TrainingSettings,
  *,
  bilevel: bool,
) -> tuple[Any, state_lib.TrainState]:
  """Put a state where its settings say, and make the step that keeps it there.

  Raises:
    ValueError: rules that do not fit the state or the mesh.
  """
  if not settings.shard:
    step = compiled.compile_step(parts, mesh, bilevel=bilevel)
    return step, sharding.place_replicated(state, mesh)
  lies = placement.state_shardings(state, mesh, settings.shard)
  if not (parts.shards or parts.norm_shards):
    # Else the compiler may move activations instead.
    gathered = placement.without_data(lies.params.weights)
    parts = parts._replace(gathered=gathered)
  step = compiled.compile_step(parts, mesh, bilevel=bilevel, state=lies)
  return step, placement.place(state, lies)
