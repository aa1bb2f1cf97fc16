"""One search in a work directory: data in, policy and pictures out."""

import json
import pathlib
from typing import Any, NamedTuple

import ml_collections
from absl import logging

from asga_jax import data as data_lib
from asga_jax import every_budget, files, search
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.data import batches as batches_lib
from asga_jax.report import pareto_plot, plots, policy_table
from asga_jax.runs import build as search_parts
from asga_jax.runs import (
  checkpoints,
  kept_table,
  lock,
  recorded_loop,
  report,
  search_loop,
  search_start,
  workdir,
)
from asga_jax.runs import config as search_config
from asga_jax.runs import metrics as metrics_log
from asga_jax.runs import summary as search_summary
from asga_jax.runs import tensorboard as tensorboard_log
from asga_jax.training import loop
from asga_jax.training import state as state_lib
from asga_jax.xla import ahead, compile_cache


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

  The directory holds `config.json`, `metrics.jsonl`, `checkpoints/`, a copy of
  the latency table if there is one and, at the end, `policy.json`,
  `summary.json`, `policy.png`, `search.png`, `pareto.json`, `pareto.png` and
  `report.html`. A search that has ended is read, not repeated.

  Args:
    config: see `search_config.default_config`.
    path: the work directory.
    tensorboard: whether to write event files to `tensorboard/` there.

  Returns:
    The policy and the summary.

  Raises:
    ValueError: bad configuration, data, budget, directory or checkpoint, or a
      directory that another process is running in; all before the first step.
    DivergedError: the loss is not finite.
  """
  compile_cache.enable()
  config = search_config.of_search(config)
  search_config.check_config(config)
  budget_lib.parse_budget(config.budget)
  if tensorboard:
    tensorboard_log.check_installed()
  directory = workdir.open_workdir(path, config, write=False)
  if (directory / "summary.json").exists():
    if tensorboard:
      recorded_loop.open_events(directory).close()
    return _read(directory)
  with lock.hold(directory):
    return _search(config, directory, tensorboard)


def _search(
  config: ml_collections.ConfigDict, directory: pathlib.Path, tensorboard: bool
) -> Finished:
  """Run what is left of a search, in a directory that is held."""
  # Not used yet: whoever misses a table is to know before data is fetched.
  search_parts.make_costs(config)
  source = {"name": config.data.name, "data_dir": config.data.dir or None}
  info = data_lib.describe(**source)
  begun = checkpoints.latest_step(directory / "checkpoints") is not None
  made = search_start.build(config, info, trained=not begun)
  restored = checkpoints.restore_latest(
    directory / "checkpoints", made.state, set_aside=True
  )
  first = None if restored is None else restored[0]
  kept_table.check(config, directory)
  compiling = None
  if (first or 0) < config.search.steps:
    shapes = batches_lib.batch_shapes(info, config.batch_size)
    pair = (shapes,) * (2 if config.search.mode == "bilevel" else 1)
    compiling = ahead.start_compiling(made.step, made.state, *pair)
  try:
    # What needs the images themselves, while the compiler works.
    dataset = data_lib.load(**source)
    splits = search_start.split(config, dataset)
    if restored is None:
      made = search_start.calibrate(config, made, dataset, splits)
  except BaseException:
    if compiling is not None and not compiling.done():
      logging.info("there is an error; the command ends when the compiler does")
    raise
  # Not before: a refused configuration must not claim the directory.
  workdir.open_workdir(directory, config)
  kept_table.keep(config, directory)
  space = made.space
  for line in costs_lib.format_uniform_bops(
    space.network, space.choices, 4
  ).splitlines():
    logging.info("%s", line)
  state = made.state
  if restored is not None:
    _, state = restored
    logging.info("going on from the checkpoint of step %d", first)
  metadata = {"proxy": dataset.name, "num_classes": dataset.num_classes}
  if compiling is not None:
    made = made._replace(step=compiling.result())
  # Open to the end: the last checkpoint is written while the result is made.
  with checkpoints.Checkpoints(directory / "checkpoints") as kept:

    def save(step: int, state: state_lib.TrainState) -> None:
      kept.save(step, state, metadata=metadata)

    state = search_loop.train(
      config,
      made,
      state,
      dataset,
      splits,
      directory,
      first,
      save,
      tensorboard=tensorboard,
    )
    finished = finish(config, made, state, dataset.name)
    policy = result_lib.allocate(finished)
    policy_lib.save(policy, directory / "policy.json")
    records = metrics_log.read_metrics(directory / "metrics.jsonl")
    if not records:
      raise metrics_log.MetricsError(
        f"{directory / 'metrics.jsonl'} is empty; expected a record of each "
        "step"
      )
    _plot(config, policy, records, directory)
    kind = budget_lib.parse_budget(config.budget).constraints[0].kind
    curve = every_budget.pareto(finished, cost=kind)
    pareto_plot.write(curve, directory / "pareto.json")
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


def _plot(
  config: ml_collections.ConfigDict,
  policy: policy_lib.Policy,
  records: list[loop.Record],
  directory: pathlib.Path,
) -> None:
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
  # Weights, ranges and signedness come from the checkpoint.
  model = search_parts.make_searchable(
    config,
    metadata["num_classes"],
    None,
    trained=False,
  )
  made = search.start_search(
    model,
    budget=config.budget,
    settings=search_config.make_settings(config),
    costs=search_parts.make_costs(
      config, kept_table.kept_path(config, directory)
    ),
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
