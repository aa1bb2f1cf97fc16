"""What a run found or trained as files: policy, networks, Pareto curve."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from asga_jax import every_budget, files
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.allocation import curve as curve_lib
from asga_jax.cost import budget as budget_lib
from asga_jax.cost import latency_table as table_lib
from asga_jax.deploy import formats as export_formats
from asga_jax.report import pareto_plot, policy_table
from asga_jax.runs import build, measure, read, waits
from asga_jax.runs import data as run_data
from asga_jax.weights import files as weight_files


def export_run(
  path: str | os.PathLike[str],
  *,
  formats: Sequence[str] = ("policy",),
  output: str | None = None,
  averaged: bool = False,
  budget: str | None = None,
  score: str | None = None,
  latency_table: str | None = None,
  report: bool = True,
  batches: int = 0,
  repeats: int = measure.REPEATS,
) -> Iterator[str]:
  """Write the policy of a run and its network in any format, with a report.

  Args:
    path: the work directory of a search or a fine-tuning.
    formats: 'policy', and names of `deploy.formats.FORMATS`.
    output: where to; with several formats the directory. By default files with
      names that say what was asked for, in the work directory.
    averaged: of a fine-tuning: whether to take the running average it kept.
    budget: of a search: another budget, from the same scores.
    score: of a search: another score to choose by.
    latency_table: of a search: a file for latency budgets, by default its own.
    report: whether to run the networks on the test split.
    batches: of the test split; 0 for all.
    repeats: runs of every file that latencies rest on; 0 for none.

  Yields:
    What was written, a few lines a file, as soon as it is.

  Raises:
    ValueError: no such run, or one that the arguments do not fit.
    OSError: a file that cannot be written; found before the run is read.
  """
  asked = {"budget": budget, "score": score, "latency_table": latency_table}
  searched = _check_kind(path, asked, {"averaged": averaged or None})
  several = len(set(formats)) > 1
  chosen_by = [
    *([str(budget_lib.parse_budget(budget))] if budget else []),
    *([score] if score else []),
  ]

  def place(*parts: str, suffix: str) -> pathlib.Path:
    if output and not several:
      return pathlib.Path(output)
    return pathlib.Path(output or path, "-".join((*parts, *chosen_by)) + suffix)

  stem = ("network", "averaged") if averaged else ("network",)
  written = {
    name: place(*stem, suffix=export_formats.FORMATS[name].suffix)
    for name in dict.fromkeys(formats)
    if name != "policy"
  }
  if output and several:
    pathlib.Path(output).mkdir(parents=True, exist_ok=True)
  # A run takes a while to read.
  for name, file in written.items():
    check_output(name, file)
  policy_file = place("policy", suffix=".json")
  if "policy" in formats:
    files.check_writable(policy_file)
  policy: policy_lib.Policy | None
  if searched:
    found = _read_search(path, latency_table)
    own = pathlib.Path(path, "policy.json")
    if budget or score or not own.exists():
      chosen = result_lib.allocate(found, budget=budget, score=score)
    else:
      # As it was chosen, which may be more than the optimum for the scores.
      chosen = policy_lib.load(own)
    policy = chosen
  else:
    trained = read.read_trained(path)
    policy = trained.policy
    _check_policy(policy, formats, path)
  if policy is not None and "policy" in formats:
    policy_lib.save(policy, policy_file)
    yield f"{policy_table.format_table(policy)}\nwritten to {policy_file}"
  if not written:
    return
  if searched:
    data = run_data.of_run(path)
    network = from_search(found, chosen, data)
  else:
    network = from_finetune(trained, averaged=averaged)
  for name, file in written.items():
    yield write_network(network, name, file)
  if report:
    measured = measure.measure_files(
      network,
      written,
      data if searched else run_data.of_run(path),
      batches=batches,
      repeats=repeats,
    )
    first = next(iter(written.values()))
    file = first.with_name(f"{first.stem}-report.json")
    picture = measure.write_report(measured, file)
    yield f"written to {file}, {picture}\n{measure.format_table(measured)}"


def export_curve(
  path: str | os.PathLike[str],
  *,
  output: str | None = None,
  cost: str | None = None,
  points: int | None = None,
  budget: str | None = None,
  score: str | None = None,
  latency_table: str | None = None,
) -> str:
  """Write the exact curve of score against cost of a search, and its picture.

  Args:
    path: the work directory of a search.
    output: the JSON file; by default it is named by what was asked for.
    cost: of the curve; 'bops' by default.
    points: the largest number of them.
    budget: what every point is to meet besides.
    score: see `export_run`.
    latency_table: see `export_run`.

  Returns:
    The curve as a table, and where it was written.

  Raises:
    ValueError: no such search, or a bad value.
    OSError: the file cannot be written; found before the search is read.
  """
  _check_kind(path, {"pareto": True}, {})
  cost = cost or "bops"
  files.check_writable(output or f"{path}/pareto-{cost}.json")
  more = {} if points is None else {"points": points}
  curve = every_budget.pareto(
    _read_search(path, latency_table),
    cost=cost,
    score=score,
    budget=budget,
    **more,
  )
  # Not pareto.png, in which the run has accuracies.
  name = "-".join(
    filter(None, ("pareto", cost, budget and curve.budget, score))
  )
  file = pathlib.Path(output or f"{path}/{name}.json")
  picture = pareto_plot.write(curve, file)
  whole = "the whole curve" if curve.complete else "more lie between"
  return (
    f"{curve_lib.format_table(curve)}\n{len(curve.points)} points ({whole}) "
    f"written to {file}, {picture}"
  )


def _check_kind(
  path: str | os.PathLike[str],
  of_search: Mapping[str, Any],
  of_training: Mapping[str, Any],
) -> bool:
  """Tell whether a run is a search; ValueError for what only the other has."""
  searched = read.is_search(path)
  kinds = ("a fine-tuning", "a search")
  other, own = kinds if searched else kinds[::-1]
  for name, value in (of_training if searched else of_search).items():
    if value is not None:
      raise ValueError(
        f"{name}={value} is of {other}; expected the work directory of one, "
        f"and {path} is of {own}."
      )
  return searched


def _check_policy(
  policy: policy_lib.Policy | None,
  formats: Sequence[str],
  path: str | os.PathLike[str],
) -> None:
  """Raise ValueError if a format needs a policy and there is none."""
  needing = [name for name in formats if name in ("policy", "packed")]
  if policy is None and needing:
    others = [name for name in export_formats.FORMATS if name != "packed"]
    raise ValueError(
      f"format={needing[0]}: {path} is of a float network, which has no "
      f"policy; expected one of {', '.join(others)}."
    )


def _read_search(
  path: str | os.PathLike[str], table: str | None
) -> result_lib.SearchResult:
  """Read a search, with the latency table that is asked for."""
  costs = (table_lib.load_latency(table),) if table else None
  found = read.read_search(path)
  return dataclasses.replace(found, costs=costs) if costs else found


def from_search(
  found: result_lib.SearchResult,
  policy: policy_lib.Policy,
  data: run_data.RunData,
) -> export_formats.Deployable:
  """Fix a searched network at a policy, with the weights of the search.

  Batch norm is re-estimated on training images, as it is before a policy is
  evaluated: a search's own statistics are those of its mixture of bits.

  Args:
    found: what `read.read_search` gives.
    policy: one of its policies.
    data: of the search.
  """
  model = read.at_policy(found.model, policy)
  with waits.told("re-estimating batch norm at the policy"):
    seen = run_data.settle(model, data)
  if seen:
    logging.info(
      "batch norm is re-estimated at the policy on %d training images of %s",
      seen,
      data.dataset.name,
    )
  shape = tuple(build.example_shape(data.config))
  return export_formats.Deployable(model, policy, shape, data.config.model)


def from_finetune(
  trained: read.TrainedRun, *, averaged: bool = False
) -> export_formats.Deployable:
  """Take the network of a fine-tuning as it was evaluated.

  Args:
    trained: from `read.read_trained`.
    averaged: whether to take the running average of its weights.

  Raises:
    ValueError: an average that was not kept.
  """
  model = trained.averaged if averaged else trained.model
  if model is None:
    raise ValueError(
      "the fine-tuning kept no average of its weights: its "
      "config.finetune.ema_decay is 0"
    )
  shape = tuple(build.example_shape(trained.config))
  return export_formats.Deployable(
    model, trained.policy, shape, trained.config.model
  )


def check_output(name: str, path: str | os.PathLike[str]) -> None:
  """Check before long work that a network can be written.

  Args:
    name: of `export_formats.FORMATS`.
    path: where to.

  Raises:
    ValueError: what the format needs is not installed, or another suffix than
      the format must have.
    OSError: the path cannot be written, or what is there is no Orbax
      checkpoint where one is to be replaced.
  """
  path = pathlib.Path(path)
  if name == "onnx":
    export_formats.onnx_library()
  if name == "packed" and path.suffix != export_formats.FORMATS[name].suffix:
    raise ValueError(
      f"{path} is no name for a packed network; expected one that ends in "
      f"{export_formats.FORMATS[name].suffix}"
    )
  if name != "orbax":
    files.check_writable(path)
  elif export_formats.is_orbax(path):
    # Beside the checkpoint, where its successor is written first.
    files.check_writable(path.with_name(f".{path.name}"))
  else:
    weight_files.check_new(path)


def write_network(
  network: export_formats.Deployable, name: str, path: str | os.PathLike[str]
) -> str:
  """Write a network in one of `export_formats.FORMATS`, whole or not at all.

  An Orbax directory goes on in JAX:

      model = asga_jax.with_policy(asga_jax.searchable(network, images), policy)
      model = asga_jax.load_weights(model, "network.orbax")

  with `searchable` called as it was before the search, or
  `asga_jax.quantize(network, images, policy)` for a fine-tuned network.

  Args:
    network: what to write.
    name: of the format.
    path: where to; a file or a checkpoint of Orbax that is there is replaced.

  Returns:
    Lines that say what was written, the size last.

  Raises:
    ValueError: a network that cannot be exported, a float one that is to be
      packed, or an extra that is missing.
    OSError: the path cannot be written.
  """
  check_output(name, path)
  if name == "packed" and network.policy is None:
    raise ValueError(
      f"{network.name} is a float network, whose weights cannot be packed; "
      "expected one at a policy"
    )
  path = pathlib.Path(path)
  said = export_formats.FORMATS[name].write(network, path)
  return f"{said}\nwritten to {path}: {export_formats.file_bytes(path)} bytes"
