"""One search in a work directory: data in, policy and pictures out."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from absl import logging
from jax.sharding import Mesh

from asga_jax import data as data_lib
from asga_jax import every_budget, search
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.allocation import curve as curve_lib
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.data import batches as batches_lib
from asga_jax.runs import (
  build,
  checkpoints,
  choice,
  config_checks,
  lock,
  meeting,
  metrics,
  pretrain,
  processes,
  read,
  recorded_loop,
  report,
  search_start,
  summary,
  workdir,
)
from asga_jax.runs import config as config_lib
from asga_jax.runs import tensorboard as tensorboard_lib
from asga_jax.training import sharding
from asga_jax.xla import ahead


def run_search(
  config: ml_collections.ConfigDict,
  path: str | pathlib.Path,
  *,
  tensorboard: bool = False,
) -> read.FinishedSearch:
  """Search a policy, or go on with a search that was interrupted.

  The directory holds `config.json`, `metrics.jsonl`, `checkpoints/`, a copy of
  the latency table if there is one and, at the end, `policy.json`,
  `summary.json`, `policy.png`, `search.png`, `pareto.json`, `measured.json`,
  `pareto.png` and `report.html`. A search without weights to start from trains
  them first, in `float/`. One that has ended is read, not repeated.

  Args:
    config: see `config_lib.default_config`.
    path: the work directory.
    tensorboard: whether to write event files to `tensorboard/` there.

  Returns:
    The policy and the summary.

  Raises:
    ValueError: bad configuration, data, budget, directory or checkpoint, or a
      directory that another process is running in; all before the first step.
    DivergedError: the loss is not finite.
  """
  config = config_lib.of_search(config)
  config_lib.check_search_config(config)
  config_lib.check_unread(config)
  budget_lib.parse_budget(config.budget)
  if tensorboard:
    tensorboard_lib.check_installed()
  meeting.check_alike(config, path)
  directory = workdir.open_workdir(path, config, write=False)
  if (directory / "summary.json").exists():
    if tensorboard:
      recorded_loop.open_events(directory).close()
    return read.read_finished_search(directory)
  with lock.hold(directory):
    return _search(config, directory, tensorboard)


def _search(
  config: ml_collections.ConfigDict, directory: pathlib.Path, tensorboard: bool
) -> read.FinishedSearch:
  """Run what is left of a search, in a directory that is held."""
  # Not used yet: whoever misses a table is to know before data is fetched.
  build.make_costs(config)
  info = build.describe_data(config)
  saved = directory / "checkpoints"
  begun = checkpoints.latest_step(saved) is not None
  pretrains = pretrain.is_due(config)
  made = build_search(config, info, trained=not begun and not pretrains)
  restored = checkpoints.restore_latest(saved, made.state, set_aside=True)
  first, state = restored or (None, made.state)
  workdir.check_table(config, directory)
  if pretrains and not begun:
    made = _pretrain(config, info, directory)
    state = made.state
  elif not begun and not config.weights.path:
    logging.warning(
      "config.weights.path is empty and config.pretrain.steps is 0: what is "
      "searched is an untrained network, whose bits say little of a trained one"
    )
  compiling = None
  if (first or 0) < config.search.steps:
    shapes = batches_lib.batch_shapes(info, config.batch_size)
    pair = (shapes,) * (2 if config.search.mode == "bilevel" else 1)
    compiling = ahead.start_compiling(made.step, made.state, *pair)
  try:
    # What needs the images themselves, while the compiler works.
    dataset = build.load_data(config)
    splits = split_proxy(config, dataset)
    if restored is None:
      made = search_start.set_ranges(config, made, dataset, splits)
      state = made.state
  except BaseException:
    if compiling is not None and not compiling.done():
      logging.info("there is an error; the command ends when the compiler does")
    raise
  # Not before: a refused configuration must not claim the directory.
  workdir.open_workdir(directory, config)
  workdir.keep_table(config, directory)
  space = made.space
  for line in costs_lib.format_uniform_bops(
    space.network, space.choices, 4
  ).splitlines():
    logging.info("%s", line)
  if restored is not None:
    logging.info("going on from the checkpoint of step %d", first)
  if restored is None and config.prior.score:
    made = search_start.set_logits(config, made, dataset, splits, directory)
    state = made.state
  if compiling is not None:
    made = made._replace(step=compiling.result())
  metadata = {"proxy": dataset.name, "num_classes": dataset.num_classes}
  # Open to the end: the last checkpoint is written while the result is made.
  with checkpoints.Checkpoints(saved, **config.checkpoints) as kept:
    state = recorded_loop.train(
      made.step,
      state,
      make_batches(config, dataset, splits, first or 0, made.mesh),
      made.mesh,
      make_plan(config),
      directory,
      first,
      functools.partial(kept.save, metadata=metadata),
      tensorboard=tensorboard,
    )
    found = read.end_search(config, made, state, dataset.name)
    return _conclude(config, found, dataset, splits, directory)


def _pretrain(
  config: ml_collections.ConfigDict,
  info: data_lib.DatasetInfo,
  directory: pathlib.Path,
) -> search.Search:
  """Train the float network, and build the search from its weights."""
  # What a search refuses for its images is to be known before the training.
  splits = split_proxy(config, build.load_data(config))
  search_start.check_splits(config, splits)
  workdir.open_workdir(directory, config)
  workdir.keep_table(config, directory)
  pretrain.train_float(config, directory)
  return build_search(pretrain.with_weights(config, directory), info)


def _conclude(
  config: ml_collections.ConfigDict,
  found: result_lib.SearchResult,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
  directory: pathlib.Path,
) -> read.FinishedSearch:
  """Choose the policy, and write all that a search leaves."""
  found, policy = choice.measure(config, found, dataset, splits, directory)
  if processes.first():
    policy_lib.save(policy, directory / "policy.json")
  records = metrics.read_metrics(directory / "metrics.jsonl")
  if not records:
    raise metrics.MetricsError(
      f"{directory / 'metrics.jsonl'} is empty; expected a record of each step"
    )
  kind = budget_lib.parse_budget(config.budget).constraints[0].kind
  curve = every_budget.pareto(found, cost=kind)
  if processes.first():
    summary.plot_search(config, policy, records, directory)
    curve_lib.save(curve, directory / "pareto.json")
  figures = summary.summarise_search(
    config, found, policy, curve, dataset, splits, records, directory
  )
  report.end_run(directory, figures)
  return read.FinishedSearch(policy, figures)


def split_proxy(
  config: ml_collections.ConfigDict, dataset: data_lib.Dataset
) -> data_lib.Splits:
  """Part the proxy as a search's configuration says."""
  bilevel = config.search.mode == "bilevel"
  return data_lib.split_proxy(
    dataset,
    heldout_fraction=config.data.heldout_fraction if bilevel else 0.0,
    seed=config.search.seed,
  )


def build_search(
  config: ml_collections.ConfigDict,
  info: data_lib.DatasetInfo,
  *,
  trained: bool = True,
) -> search.Search:
  """Build a search whose step can be compiled, without the proxy's images.

  Args:
    config: of the search.
    info: of the proxy.
    trained: whether to load the weights that the configuration names, if any.

  Returns:
    The search, for `search_start`. Its step takes batches of `make_batches`.

  Raises:
    ValueError: bad values or weights, no layer with a choice, images that are
      larger than their size in the network, an infeasible budget, or a batch
      that is larger than the proxy or does not divide over the devices.
  """
  mesh = sharding.data_mesh(model=config.search.model_devices)
  sharding.check_batch_size(config.batch_size, mesh, config.search.accumulate)
  batches_lib.steps_per_epoch(info.train_images, config.batch_size)
  batches_lib.steps_per_epoch(info.train_images, config.eval_batch_size)
  prepare = build.make_prepare(config, info, train=True)
  # A size that does not fit the images is told here.
  jax.eval_shape(prepare, jax.random.key(0), batches_lib.batch_shapes(info, 1))
  made = search.start_search(
    build.make_searchable(config, info.num_classes, None, trained=trained),
    budget=config.budget,
    settings=search_start.settings_without_prior(config),
    costs=build.make_costs(config),
    prepare=prepare,
    mesh=mesh,
  )
  if not any(choice.searched for choice in made.space.choices.values()):
    bits = tuple(config.bits)
    fixed = ", and config.rules leave no choice" if config.rules else ""
    raise config_checks.ConfigError(
      f"config.bits is {bits}{fixed}: there is nothing to search; expected two "
      "bit-widths or more (launch/finetune.py --policy=4bit trains at one)"
    )
  return made


def make_plan(config: ml_collections.ConfigDict) -> recorded_loop.Plan:
  """Say how long a search runs, and what it tells how often."""
  return recorded_loop.Plan(
    label="search",
    steps=config.search.steps,
    flush_every=config.flush_every,
    save_every=config.checkpoint_every,
    shown=search.SHOWN,
    pairs=config.search.mode == "bilevel",
    skip_nonfinite=config.search.skip_nonfinite,
  )


def make_batches(
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

  def of(split: data_lib.Split) -> Iterator[dict[str, Any]]:
    for batch in batches_lib.batches_at(
      split,
      range(first, config.search.steps),
      batch_size=config.batch_size,
      seed=config.search.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      crops=True,
    ):
      yield {**batch, **statistics}

  if config.search.mode == "bilevel":
    yield from zip(of(splits.train), of(splits.heldout), strict=True)
  else:
    yield from of(splits.train)
