"""One step as a program over a mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from asga_jax.training import sharding, steps
from asga_jax.training import state as state_lib
from asga_jax.xla import lowering, target


def compile_step(
  parts: steps.StepParts, mesh: Mesh, *, bilevel: bool, state: Any = None
) -> Callable[..., tuple[state_lib.TrainState, steps.Metrics]]:
  """Make the jitted step over a mesh, with its state donated.

  Args:
    parts: the constants.
    mesh: of the axis `data`; a single device is the special case of one.
    bilevel: whether the step takes a held-out batch beside its batch.
    state: of the shardings that the step's state has, see `placement`; None
      where all of it lies on every device.

  Returns:
    A function of (state, batch) or (state, batch, heldout) to (state, figures).
  """
  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)

  # Of devices that may be described alone, see `jax.experimental.topologies`.
  platform = mesh.devices.flat[0].platform
  with target.aimed_at(platform):
    options = lowering.compiler_options()

  def step(state, *batches):
    if parts.accumulate > 1:
      for leaf in jax.tree.leaves(batches):
        sharding.check_batch_size(len(leaf), mesh, parts.accumulate)
    with target.aimed_at(platform):
      return steps.train_step(parts, state, *batches)

  lies = whole if state is None else state
  return jax.jit(
    step,
    in_shardings=(lies, split, split) if bilevel else (lies, split),
    out_shardings=(lies, whole),
    donate_argnums=0,
    compiler_options=options,
  )
