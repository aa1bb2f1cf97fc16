"""The training steps that `benchmarks/steps.py` compares, made by name."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from asga_jax import conversion, finetune, models, policy, search
from asga_jax.quantization import quantizers
from asga_jax.training import losses, search_settings, sharding

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Case:
  """A network and the images that it is trained on."""

  model: str
  stem: str
  size: int
  batch: int

  @property
  def name(self) -> str:
    """Say what it is in a line of a table."""
    shape = f"{self.size}x{self.size}, batch {self.batch}"
    return f"{self.model}, {self.stem} stem, {shape}"

  def network(self, convolution: Callable[..., Any]) -> nnx.Module:
    """Make the float network, by seed 0."""
    return models.constructor(self.model)(
      CLASSES,
      stem=self.stem,
      conv_general_dilated=convolution,
      rngs=nnx.Rngs(0),
    )

  def data(self) -> dict[str, np.ndarray]:
    """Draw a batch, by seed 0."""
    generator = np.random.default_rng(0)
    shape = (self.batch, self.size, self.size, 3)
    return {
      "image": generator.normal(size=shape).astype(np.float32),
      "label": generator.integers(0, CLASSES, self.batch).astype(np.int32),
    }


class Step(NamedTuple):
  """A jitted step of (state, *batches) to (state, anything)."""

  function: Any
  state: Any
  batches: tuple[Any, ...]
  # Steps that are timed together, where they take turns in what they do.
  together: int = 1
  # Steps that one call makes.
  steps: int = 1
  # Whether XLA is given this project's options: not what others make.
  own_options: bool = True


def plain(case: Case, convolution: Callable[..., Any]) -> Step:
  """Make forward, backward and SGD with momentum, in nothing but JAX."""
  return _float_step(case, convolution, optax.sgd(0.01, momentum=0.9))


def optax_sam(case: Case, convolution: Callable[..., Any]) -> Step:
  """Make a step of optax's own SAM on the float network."""
  optimizer = optax.contrib.sam(
    optax.sgd(0.01, momentum=0.9),
    optax.chain(optax.contrib.normalize(), optax.sgd(0.05)),
    opaque_mode=True,
  )
  return _float_step(
    case, convolution, optimizer, opaque=True, own_options=False
  )


def qwix_qat(case: Case, convolution: Callable[..., Any]) -> Step:
  """Make a step of qwix's quantization-aware training, 8 bits each."""
  import qwix

  provider = qwix.QtProvider(
    [qwix.QtRule(module_path=".*", weight_qtype="int8", act_qtype="int8")]
  )
  images = jnp.asarray(case.data()["image"])
  network = qwix.quantize_model(case.network(convolution), provider, images)
  return _float_step(
    case,
    convolution,
    optax.sgd(0.01, momentum=0.9),
    network=network,
    own_options=False,
  )


def _float_step(
  case,
  convolution,
  optimizer,
  *,
  opaque=False,
  network=None,
  own_options=True,
):
  network = network or case.network(convolution)
  network.train()
  parts: Any = nnx.split(network, nnx.Param, ...)
  graphdef, params, rest = parts[0], *map(nnx.as_pure, parts[1:])

  def loss(params, rest, batch):
    model = nnx.merge(graphdef, params, rest, copy=True)
    value, _ = losses.cross_entropy(model, batch)
    return value, nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

  def step(state, batch):
    params, rest, optimizer_state = state
    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, new_rest), gradients = gradient(params, rest, batch)
    extra: dict[str, Any] = {}
    if opaque:
      extra["grad_fn"] = lambda p, _: gradient(p, rest, batch)[1]
    updates, optimizer_state = optimizer.update(
      gradients, optimizer_state, params, **extra
    )
    params = optax.apply_updates(params, updates)
    return (params, new_rest, optimizer_state), value

  state = jax.tree.map(jnp.copy, (params, rest, optimizer.init(params)))
  batch = jax.tree.map(jnp.asarray, case.data())
  return Step(
    jax.jit(step, donate_argnums=0), state, (batch,), own_options=own_options
  )


def searched(
  case: Case,
  convolution: Callable[..., Any],
  *,
  bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8),
  **settings: Any,
) -> Step:
  """Make a step of a search, with bit-widths above 8 if they are asked for."""
  known = tuple({*quantizers.BITS, *bits})
  with (
    mock.patch.object(quantizers, "BITS", known),
    mock.patch.object(policy, "ACCEPTED_BITS", known),
  ):
    found = search.start_search(
      _searchable(case, convolution, bits),
      budget=f"bops={max(bits[0], 4)}bit",
      settings=search_settings.SearchSettings(**settings),
      mesh=sharding.data_mesh(jax.devices()[:1]),
    )
  batch = sharding.place_batch(case.data(), found.mesh)
  count = 2 if settings.get("mode") == "bilevel" else 1
  together = settings.get("sharpness", {}).get("ascent_every", 1)
  return Step(found.step, found.state, (batch,) * count, together)


def scanned(case: Case, convolution: Callable[..., Any], *, steps: int) -> Step:
  """Make several steps of a search, on batches in memory, in one `jit`."""
  one = searched(case, convolution)
  batches = jax.tree.map(lambda x: jnp.stack([x] * steps), one.batches)
  # Options of the compiler are for an outermost `jit` alone.
  function = one.function.__wrapped__

  def step(state, *batches):
    return jax.lax.scan(lambda s, x: function(s, *x), state, batches)

  return Step(jax.jit(step, donate_argnums=0), one.state, batches, steps=steps)


def trained(
  case: Case,
  convolution: Callable[..., Any],
  *,
  bits: int | None,
  preset: str = "sgd",
) -> Step:
  """Make a step of training at a policy, uniform bits or None for float."""
  model: Any = case.network(convolution)
  if bits is not None:
    model = _searchable(case, convolution, (bits,))
  mesh = sharding.data_mesh(jax.devices()[:1])
  training = finetune.start_training(
    model, settings=finetune.FinetuneSettings(preset=preset), mesh=mesh
  )
  batch = sharding.place_batch(case.data(), mesh)
  return Step(training.step, training.state, (batch,))


def _searchable(case, convolution, bits):
  return conversion.searchable(
    case.network(convolution), jnp.asarray(case.data()["image"]), bits=bits
  )
