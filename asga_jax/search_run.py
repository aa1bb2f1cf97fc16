"""One search in a work directory: data in, policy and pictures out."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from absl import logging

from asga_jax import data as data_lib
from asga_jax import (
  files,
  policy_table,
  report,
  search,
  search_config,
  search_summary,
)
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.analysis import plots
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.data import batches as batches_lib
from asga_jax.training import (
  ahead,
  checkpoints,
  compile_cache,
  loop,
  metrics_log,
  sharding,
  tensorboard_log,
  workdir,
)
from asga_jax.training import state as state_lib

# Figures that the progress display shows.
SHOWN = ("loss", "accuracy", "gap", "radius", "expected_use")


class Finished(NamedTuple):
  """What a search leaves in its work directory, and in memory."""

  policy: policy_lib.Policy
  summary: dict[str, Any]


def run(
  config: ml_collections.ConfigDict,
  path: str | pathlib.Path,
  *,
  tensorboard: bool = False,
) -> Finished:
  """Search a policy, or goes on with a search that was interrupted.

  The directory holds `config.json`, `metrics.jsonl`, `checkpoints/` and, at the
  end, `policy.json`, `summary.json`, `policy.png`, `search.png` and
  `report.html`. A search that has ended is read, not repeated.

  Args:
    config: see `search_config.default_config`.
    path: the work directory.
    tensorboard: whether to write event files to `tensorboard/` there.

  Returns:
    The policy and the summary.

  Raises:
    ValueError: bad configuration, data, budget, directory or checkpoint; all
      before the first step.
    DivergedError: the loss is not finite.
  """
  compile_cache.enable()
  search_config.check_config(config)
  budget_lib.parse_budget(config.budget)
  if tensorboard:
    tensorboard_log.check_installed()
  directory = workdir.open_workdir(path, config, write=False)
  if (directory / "summary.json").exists():
    if tensorboard:
      _open_events(directory).close()
    return _read(directory)
  dataset = data_lib.load(config.data.name, data_dir=config.data.dir or None)
  bilevel = config.search.mode == "bilevel"
  splits = data_lib.split_proxy(
    dataset,
    heldout_fraction=config.data.heldout_fraction if bilevel else 0.0,
    seed=config.search.seed,
  )
  made = start(config, dataset, splits)
  # Not before: a refused configuration must not claim the directory.
  workdir.open_workdir(path, config)
  space = made.space
  for line in costs_lib.format_uniform_bops(
    space.network, space.choices, 4
  ).splitlines():
    logging.info("%s", line)
  state, first = made.state, None
  restored = checkpoints.restore_latest(directory / "checkpoints", state)
  if restored is not None:
    first, state = restored
    logging.info("going on from the checkpoint of step %d", first)
  metadata = {"proxy": dataset.name, "num_classes": dataset.num_classes}
  if (first or 0) < config.search.steps:
    example = next(_batches(config, splits, first or 0))
    placed = sharding.place_batch(example, made.mesh)
    batches = placed if config.search.mode == "bilevel" else (placed,)
    made = made._replace(step=ahead.compile_step(made.step, state, *batches))
  state = train(
    config,
    made,
    state,
    splits,
    directory,
    first,
    metadata,
    tensorboard=tensorboard,
  )
  finished = finish(config, made, state, dataset.name)
  policy = result_lib.allocate(finished)
  policy_lib.save(policy, directory / "policy.json")
  records = metrics_log.read_metrics(directory / "metrics.jsonl")
  if not records:
    raise metrics_log.MetricsError(
      f"{directory / 'metrics.jsonl'} is empty; expected a record of each step"
    )
  plots.plot_policy(
    policy.layers,
    directory / "policy.png",
    model=policy.model,
    budget=policy.budget,
    budget_used=float(policy.cost["budget_used"]),
    convention=str(policy.cost["bops_convention"]),
  )
  rho_max = config.search.sharpness.rho_max
  plots.plot_search(records, directory / "search.png", rho_max=rho_max)
  summary = search_summary.summarise(
    config, finished, policy, dataset, splits, records
  )
  files.write_text_atomic(
    directory / "summary.json", json.dumps(summary, indent=2) + "\n"
  )
  for sentence in summary["warnings"]:
    logging.warning("%s", sentence)
  report.write_report([directory])
  return Finished(policy, summary)


def finish(
  config: ml_collections.ConfigDict,
  made: search.Search,
  state: state_lib.TrainState,
  proxy: str,
) -> result_lib.SearchResult:
  """End a search of the command line; see `search.finish`."""
  return search.finish(
    made,
    state,
    model_name=config.model,
    provenance={
      "proxy": proxy,
      "config_sha256": workdir.config_sha256(config),
    },
  )


def restore(path: str | pathlib.Path) -> result_lib.SearchResult:
  """Read the result of a search from its newest checkpoint, without its data.

  Args:
    path: the work directory.

  Returns:
    The result, for `asga_jax.allocate`: any budget, the same scores.

  Raises:
    ValueError: no configuration or no whole checkpoint there.
  """
  directory = pathlib.Path(path)
  config = ml_collections.ConfigDict(workdir.read_config(directory))
  folder = directory / "checkpoints"
  search_config.check_config(config)
  metadata = checkpoints.latest_metadata(folder)
  shape = search_config.example_shape(config)
  # Ranges and signedness come from the checkpoint, so any image will do.
  model = search_config.make_searchable(
    config, metadata["num_classes"], jnp.zeros((1, *shape))
  )
  made = search.start_search(
    model,
    budget=config.budget,
    settings=search_config.make_settings(config),
  )
  restored = checkpoints.restore_latest(folder, made.state)
  assert restored is not None
  step, state = restored
  if step < config.search.steps:
    logging.warning(
      "the search in %s has not ended: this is step %d of %d",
      directory,
      step,
      config.search.steps,
    )
  return finish(config, made, state, metadata["proxy"])


def _read(directory: pathlib.Path) -> Finished:
  logging.info("the search in %s has ended; this is its result", directory)
  file = directory / "summary.json"
  try:
    summary = json.loads(file.read_text())
  except ValueError as error:
    raise workdir.WorkdirError(
      f"{file} is damaged ({error}); remove it, and the same command makes it "
      "again from the last checkpoint"
    ) from error
  return Finished(policy_lib.load(directory / "policy.json"), summary)


def _open_events(
  directory: pathlib.Path,
) -> tensorboard_log.TensorBoardWriter:
  """Start event files with the steps that the metrics file holds."""
  records = metrics_log.read_metrics(directory / "metrics.jsonl")
  return tensorboard_log.TensorBoardWriter(directory / "tensorboard", records)


def start(
  config: ml_collections.ConfigDict,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
) -> search.Search:
  """Build a search that is ready for its first step.

  Args:
    config: of the search.
    dataset: the proxy.
    splits: its parts.

  Returns:
    The search, calibrated on the first training batch.

  Raises:
    ValueError: bad values, an infeasible budget, or a batch that does not
      divide over the devices.
  """
  mesh = sharding.data_mesh()
  sharding.check_batch_size(config.batch_size, mesh)
  batches_lib.steps_per_epoch(splits.train, config.batch_size)
  batches_lib.steps_per_epoch(splits.train, config.eval_batch_size)
  if config.search.mode == "bilevel":
    batches_lib.steps_per_epoch(splits.heldout, config.batch_size)
  prepare = search_config.make_prepare(config, dataset, train=False)
  example = batches_lib.batch_at(
    splits.train, 0, batch_size=config.batch_size, seed=config.search.seed
  )
  images = prepare(jax.random.key(0), {"image": jnp.asarray(example["image"])})
  model = search_config.make_searchable(
    config, dataset.num_classes, images["image"]
  )
  return search.start_search(
    model,
    budget=config.budget,
    settings=search_config.make_settings(config),
    prepare=search_config.make_prepare(config, dataset, train=True),
    mesh=mesh,
  )


def _batches(
  config: ml_collections.ConfigDict, splits: data_lib.Splits, first: int
) -> Iterator[Any]:
  """Yield raw batches from a step on: pairs with held-out ones if bilevel."""
  place: dict[str, Any] = {
    "batch_size": config.batch_size,
    "seed": config.search.seed,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
  }
  for step in range(first, config.search.steps):
    batch = batches_lib.batch_at(splits.train, step, **place)
    if config.search.mode == "bilevel":
      yield batch, batches_lib.batch_at(splits.heldout, step, **place)
    else:
      yield batch


def train(
  config: ml_collections.ConfigDict,
  made: search.Search,
  state: state_lib.TrainState,
  splits: data_lib.Splits,
  directory: pathlib.Path,
  first: int | None,
  metadata: dict[str, Any],
  *,
  tensorboard: bool = False,
) -> state_lib.TrainState:
  """Run the steps that are left, with metrics, progress and checkpoints.

  Args:
    config: of the search.
    made: the search.
    state: to go on from; donated.
    splits: of the proxy.
    directory: the work directory; checkpoints/ and metrics.jsonl go there.
    first: the step of the checkpoint that `state` comes from, None for none.
    metadata: kept with every checkpoint.
    tensorboard: whether event files go to tensorboard/ there.

  Returns:
    The state after the last step.

  Raises:
    DivergedError: the loss is not finite.
  """
  done = first or 0
  with (
    checkpoints.Checkpoints(directory / "checkpoints") as kept,
    metrics_log.MetricsWriter(
      directory / "metrics.jsonl", resume_step=first
    ) as writer,
    # After the metrics file: opening that drops what will be done again.
    _open_events(directory)
    if tensorboard
    else contextlib.nullcontext() as events,
    metrics_log.Progress(
      config.search.steps, initial=done, label="search"
    ) as progress,
  ):

    def on_records(records: list[loop.Record]) -> None:
      writer.write(records)
      if events is not None:
        events.write(records)
      last = records[-1]
      progress.update(int(last["step"]), {name: last[name] for name in SHOWN})

    return loop.run(
      made.step,
      state,
      _batches(config, splits, done),
      config.search.steps,
      made.mesh,
      pairs=config.search.mode == "bilevel",
      flush_every=config.flush_every,
      on_records=on_records,
      save=lambda step, state: kept.save(step, state, metadata=metadata),
      save_every=config.checkpoint_every,
      last_saved=first,
    )


def format_result(finished: Finished) -> str:
  """Lay out a finished search for the terminal: the table and the summary."""
  lines = [policy_table.format_table(finished.policy), ""]
  for name, value in finished.summary.items():
    if name == "warnings":
      lines += [f"warning: {sentence}" for sentence in value]
      continue
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    lines.append(f"{name.replace('_', ' ')}: {shown}")
  return "\n".join(lines)
