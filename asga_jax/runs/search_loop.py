"""The steps of a search: its batches, and what it shows of them."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from asga_jax import data as data_lib
from asga_jax import search
from asga_jax.data import batches as batches_lib
from asga_jax.runs import recorded_loop
from asga_jax.training import sharding
from asga_jax.training import state as state_lib

# Figures that the progress display shows.
SHOWN = ("loss", "accuracy", "gap", "radius", "expected_use")


def batches(
  config: ml_collections.ConfigDict,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
  first: int,
  mesh: Mesh,
) -> Iterator[Any]:
  """Yield raw batches from a step on: pairs with held-out ones if bilevel.

  Args:
    config: of the search.
    dataset: the proxy.
    splits: its parts.
    first: how many steps were done.
    mesh: where the batches go.

  Yields:
    Batches of this process, as `data.batches.batch_at` gives them, with the
    proxy's statistics on the mesh.
  """
  share = config.batch_size // jax.process_count()
  # Once for all steps.
  statistics = sharding.place_batch(
    batches_lib.statistics(dataset, share), mesh
  )

  def batch_at(split: data_lib.Split, step: int) -> dict[str, Any]:
    return {**batches_lib.batch_at(split, step, **place), **statistics}

  place: dict[str, Any] = {
    "batch_size": config.batch_size,
    "seed": config.search.seed,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
  }
  for step in range(first, config.search.steps):
    batch = batch_at(splits.train, step)
    if config.search.mode == "bilevel":
      yield batch, batch_at(splits.heldout, step)
    else:
      yield batch


def train(
  config: ml_collections.ConfigDict,
  made: search.Search,
  state: state_lib.TrainState,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
  directory: pathlib.Path,
  first: int | None,
  save: Callable[[int, state_lib.TrainState], None],
  *,
  tensorboard: bool = False,
) -> state_lib.TrainState:
  """Run the steps of a search that are left, see `recorded_loop.train`."""
  return recorded_loop.train(
    made.step,
    state,
    batches(config, dataset, splits, first or 0, made.mesh),
    made.mesh,
    recorded_loop.Plan(
      label="search",
      steps=config.search.steps,
      flush_every=config.flush_every,
      save_every=config.checkpoint_every,
      shown=SHOWN,
      pairs=config.search.mode == "bilevel",
    ),
    directory,
    first,
    save,
    tensorboard=tensorboard,
  )
