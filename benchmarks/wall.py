"""Where the wall time of a search goes: to the first step, in steps, elsewhere.

Runs launch/search.py as a user does, with an empty cache of compiled programs
and again with the cache that this leaves. Then profiles, in one process, a
whole search with that cache, and the loop of a search: steps, batches, figures,
progress, checkpoints.
Prints a table, and writes it to --output.

python benchmarks/wall.py --output=runs/wall [--config.data.name=cifar10]
"""

import contextlib
import copy
import functools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import terminal
from absl import app, flags, logging
from ml_collections import config_flags

from asga_jax import data as data_lib
from asga_jax import every_budget, files
from asga_jax.allocation import curve as curve_lib
from asga_jax.data import batches as batches_lib
from asga_jax.runs import (
  build,
  checkpoints,
  read,
  recorded_loop,
  search_start,
  summary,
)
from asga_jax.runs import metrics as metrics_log
from asga_jax.runs import search as search_run
from asga_jax.training import loop, progress, sharding
from asga_jax.xla import ahead

# What a loop does beside its steps, by the functions that do it.
PARTS: dict[str, tuple[Any, str]] = {
  "making batches": (batches_lib, "batch_at"),
  "placing them": (sharding, "place_batch"),
  "fetching figures": (loop.FigureBuffer, "flush"),
  "writing figures": (metrics_log.MetricsWriter, "write"),
  "progress": (progress.Progress, "update"),
  "checkpoints": (checkpoints.Checkpoints, "save"),
}

# What a search does from its start to its end, by the functions that do it.
WHOLE: dict[str, tuple[Any, str]] = {
  "start: network, quantizers": (search_run, "build_search"),
  "start: tracing the step": (ahead, "start_compiling"),
  "start: calibrating, beside loading": (search_start, "set_ranges"),
  "steps": (recorded_loop, "train"),
  "end: network, scores": (read, "end_search"),
  "end: plots": (summary, "plot_search"),
  "end: Pareto curve": (every_budget, "pareto"),
  "end: its file": (curve_lib, "save"),
  "end: evaluating": (summary, "summarise_search"),
}

STEP = "the compiled step"
LOADING = "start: waiting for the step"
ROOT = pathlib.Path(__file__).parents[1]

_CONFIG = config_flags.DEFINE_config_file(
  "config", str(ROOT / "configs" / "mobilenetv2.py"), "A file of configs/."
)
_OUTPUT = flags.DEFINE_string("output", "runs/wall", "Where results go.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Loops of each kind.")
_STEPS = flags.DEFINE_integer("steps", 100, "Steps of such a loop.")


def run_command(arguments: list[str], cache: str) -> dict[str, float]:
  """Run launch/search.py and take the times at which it says what it does.

  Args:
    arguments: its flags.
    cache: the directory of compiled programs.

  Returns:
    Seconds from the command to its first step, to its last and to its end, and
    what it says of compiling.
  """
  command = [sys.executable, str(ROOT / "launch" / "search.py"), *arguments]
  environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
  found: dict[str, float] = {}
  said: list[str] = []
  started = time.perf_counter()
  with subprocess.Popen(
    command,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    assert process.stdout is not None
    for line in process.stdout:
      now = time.perf_counter() - started
      said.append(line)
      compiled = re.search(r"traced in (\S+) s, compiled in (\S+) s", line)
      step = re.search(r"search step (\d+) of (\d+)", line)
      if compiled:
        found |= {
          "trace": float(compiled[1]),
          "compile": float(compiled[2]),
        }
      elif step and "first_step" not in found:
        found["first_step"] = now
      if step and step[1] == step[2]:
        found["last_step"] = now
  found["end"] = time.perf_counter() - started
  if process.returncode:
    raise RuntimeError(f"{command} failed: {''.join(said[-5:])}")
  return found


def _timed(
  function: Callable[..., Any], spent: dict[str, float], part: str
) -> Callable[..., Any]:
  @functools.wraps(function)
  def timed(*args: Any, **kwargs: Any) -> Any:
    started = time.perf_counter()
    try:
      return function(*args, **kwargs)
    finally:
      spent[part] += time.perf_counter() - started

  return timed


@contextlib.contextmanager
def timed_step(
  step: Callable[..., Any], spent: dict[str, float]
) -> Iterator[Callable[..., Any]]:
  """Give a step that the loop waits for, from its call to its last figure.

  The loop goes on in between as it always does: it releases the old state.
  """
  begun: list[float] = []
  add = loop.FigureBuffer.add

  def begin(*args: Any) -> Any:
    begun.append(time.perf_counter())
    return step(*args)

  def add_when_done(self: Any, number: int, figures: dict[str, Any]) -> None:
    jax.block_until_ready(figures)
    spent[STEP] += time.perf_counter() - begun.pop()
    add(self, number, figures)

  with mock.patch.object(loop.FigureBuffer, "add", add_when_done):
    yield begin


@contextlib.contextmanager
def timed_parts(
  parts: Mapping[str, tuple[Any, str]], spent: dict[str, float]
) -> Iterator[None]:
  """Add up what parts take; a profiler of every call takes longer itself."""
  with contextlib.ExitStack() as stack:
    for part, (owner, name) in parts.items():
      function = _timed(getattr(owner, name), spent, part)
      stack.enter_context(mock.patch.object(owner, name, function))
    yield


def profile_whole(config: Any, directory: str, cache: str) -> dict[str, float]:
  """Say where the time of a whole search goes, with a full cache.

  Args:
    config: of the search.
    directory: an empty one, its work directory.
    cache: the directory of compiled programs, with those of such a search.

  Returns:
    Part -> seconds.
  """
  order = [*WHOLE]
  order.insert(order.index("steps"), LOADING)
  spent = dict.fromkeys(order, 0.0)
  start_compiling = ahead.start_compiling

  def start_and_time(*args: Any) -> Any:
    compiling: Any = start_compiling(*args)
    compiling.result = _timed(compiling.result, spent, LOADING)
    return compiling

  jax.config.update("jax_compilation_cache_dir", cache)
  # As the command does; its folder is no package.
  sys.path.append(str(ROOT / "launch"))
  import process

  process.prepare()
  with (
    mock.patch.object(ahead, "start_compiling", start_and_time),
    timed_parts(WHOLE, spent),
  ):
    started = time.perf_counter()
    search_run.run_search(config, directory)
    whole = time.perf_counter() - started
  return {**spent, "the rest": whole - sum(spent.values())}


def profile_loops(config: Any, rounds: int, steps: int) -> list[dict]:
  """Say where the time of a search's loop goes.

  The loop waits for every step to end before it goes on to the next batch, so
  that what it does beside steps has times of its own; without that waiting most
  of it would be hidden.

  Args:
    config: of the search.
    rounds: how many loops.
    steps: of one loop.

  Returns:
    For every loop part -> seconds.
  """
  dataset = build.load_data(config)
  splits = data_lib.split_proxy(dataset, heldout_fraction=0.0, seed=0)
  config.search.steps = steps
  made = search_start.set_ranges(
    config, search_run.build_search(config, dataset.info), dataset, splits
  )
  raw = next(search_run.make_batches(config, dataset, splits, 0, made.mesh))
  batch = sharding.place_batch(raw, made.mesh)
  compiled = ahead.compile_step(made.step, made.state, batch)

  found = []
  # The first round warms up.
  for _ in range(rounds + 1):
    state = sharding.place_replicated(made.state, made.mesh)
    jax.block_until_ready(state)
    spent = dict.fromkeys((STEP, *PARTS), 0.0)
    with (
      tempfile.TemporaryDirectory() as directory,
      checkpoints.Checkpoints(f"{directory}/checkpoints") as kept,
      timed_step(compiled, spent) as step,
      timed_parts(PARTS, spent),
    ):
      started = time.perf_counter()
      recorded_loop.train(
        step,
        state,
        search_run.make_batches(config, dataset, splits, 0, made.mesh),
        made.mesh,
        search_run.make_plan(config),
        pathlib.Path(directory),
        None,
        kept.save,
      )
      whole = time.perf_counter() - started
    spent["the rest"] = whole - sum(spent.values())
    found.append(spent)
  return found[1:]


def format_table(found: dict[str, Any]) -> str:
  """Lay out the times."""
  cold, warm, loops = found["cold"], found["warm"], found["loops"]
  steps = found["steps"]
  a_step = statistics.median(x[STEP] for x in loops)
  outside = (
    f"{100 * (1 - steps * a_step / found['loop_steps'] / run['end']):.1f} %"
    for run in (cold, warm)
  )
  spans = [
    ("command to first step", "first_step", None),
    ("of it tracing", "trace", None),
    ("of it compiling, beside the data", "compile", None),
    (f"steps 2 to {steps}", "last_step", "first_step"),
    ("evaluation, plots, result", "end", "last_step"),
    ("whole run", "end", None),
  ]
  rows = [
    (name, *(f"{x[until] - x.get(since, 0):.1f} s" for x in (cold, warm)))
    for name, until, since in spans
  ]
  rows.append(("outside the step, of the whole run", *outside))
  whole = f"whole run of {steps} steps, full cache", "seconds", "% of the run"
  loop = f"loop of {found['loop_steps']} steps ({len(loops)} loops)"
  return "\n\n".join(
    [
      terminal.table(rows, ("", "empty cache", "full cache")),
      _format_parts([found["whole"]], *whole),
      _format_parts(loops, loop, "median s", "% of the loop"),
    ]
  )


def _format_parts(runs: list[dict[str, float]], *headers: str) -> str:
  """Lay out seconds and shares of the parts of runs: median, and spread."""
  totals = [sum(run.values()) for run in runs]
  rows = []
  for part in (*runs[0], "the whole"):
    spent = [run.get(part, sum(run.values())) for run in runs]
    shares = [100 * x / y for x, y in zip(spent, totals, strict=True)]
    medians = (f"{statistics.median(x):.2f}" for x in (spent, shares))
    span = f"({min(shares):.2f} to {max(shares):.2f})" if len(runs) > 1 else ""
    rows.append((part, *medians, span))
  return terminal.table(rows, (*headers, ""))


def main(_: list[str]) -> None:
  """Measure, print and write."""
  logging.set_verbosity(logging.INFO)
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  config = _CONFIG.value
  # Of a search alone: the training before it has a loop of its own.
  config.pretrain.steps = 0
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  found: dict[str, Any] = {
    "steps": config.search.steps,
    "loop_steps": _STEPS.value,
  }
  with tempfile.TemporaryDirectory() as directory:
    cache = f"{directory}/compiled"
    for kind in ("cold", "warm"):
      arguments = [f"--config={name}", f"--workdir={directory}/{kind}"]
      arguments += [flag for flag in sys.argv if flag.startswith("--config.")]
      arguments.append("--config.pretrain.steps=0")
      found[kind] = run_command(arguments, cache)
      logging.info("%s: %s", kind, found[kind])
    # Of a search that has ended: it imports, reads and prints.
    imports = run_command(arguments, cache)["end"]
    whole = profile_whole(copy.deepcopy(config), f"{directory}/whole", cache)
    found["whole"] = {"imports, printing": imports, **whole}
    found["loops"] = profile_loops(config, _ROUNDS.value, _STEPS.value)
  files.write_text_atomic(
    output / "wall.json", json.dumps(found, indent=2) + "\n"
  )
  print(format_table(found))


if __name__ == "__main__":
  app.run(main)
