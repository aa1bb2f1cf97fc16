"""What a step of the search costs beside a plain training step.

A plain step is forward, backward and SGD of the float network in nothing but
JAX, with the same convolutions and compiler options. Each row is compiled with
an empty cache, and then read from it; then all rows take turns, a step to warm
up and a timed one each, and ratios are those of the medians. What others make
(optax, qwix) keeps XLA's own options. Prints a table, and writes it with a
picture to --output.

python benchmarks/steps.py --output=runs/steps
"""

import contextlib
import functools
import json
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import step_kinds as kinds
import terminal
from absl import app, flags, logging
from jax.experimental.compilation_cache import compilation_cache
from matplotlib import figure as figure_lib

from asga_jax import files
from asga_jax.xla import lowering

CASES = {
  "resnet18": kinds.Case("resnet18", "small", 32, 32),
  "resnet50": kinds.Case("resnet50", "small", 32, 16),
  "resnet20": kinds.Case("resnet20", "small", 32, 128),
  "mobilenetv2": kinds.Case("mobilenet_v2", "imagenet", 32, 64),
  "mobilenetv2_224": kinds.Case("mobilenet_v2", "imagenet", 224, 8),
  "vit_ti": kinds.Case("vit_ti", "small", 32, 16),
  "resnet18_224": kinds.Case("resnet18", "imagenet", 224, 128),
}
# What a GPU is made for takes minutes a step on a CPU.
FOR_GPU = ("resnet18_224",)
ROWS: dict[str, Callable[..., kinds.Step]] = {
  "plain": kinds.plain,
  "optax.contrib.sam": kinds.optax_sam,
  "qwix w8a8": kinds.qwix_qat,
  "SAM, float": functools.partial(kinds.trained, bits=None, preset="sam"),
  "fixed 4 bits": functools.partial(kinds.trained, bits=4),
  "mixture alone": functools.partial(kinds.searched, preset="sgd"),
  "ASGA search": kinds.searched,
  "ASGA, 2 candidates": functools.partial(kinds.searched, bits=(2, 4)),
  "ASGA, 8 candidates": functools.partial(
    kinds.searched, bits=(2, 3, 4, 5, 6, 7, 8, 32)
  ),
  # More than users may have: how time and memory grow.
  "ASGA, 12 candidates": functools.partial(
    kinds.searched, bits=(*range(2, 13), 32)
  ),
  "ASGA, ascent previous": functools.partial(
    kinds.searched, sharpness={"ascent": "previous"}
  ),
  "ASGA, ascent every 4th": functools.partial(
    kinds.searched, sharpness={"ascent_every": 4}
  ),
  "ASGA, 5 in one jit": functools.partial(kinds.scanned, steps=5),
  "ASGA bilevel": functools.partial(kinds.searched, mode="bilevel"),
}
# Networks that take long to compile are measured in fewer rows.
FEW = ("plain", "fixed 4 bits", "ASGA search", "ASGA, ascent previous")
ROWS_OF = {
  "mobilenetv2": (
    *FEW,
    "ASGA, 8 candidates",
    "ASGA, 5 in one jit",
    "ASGA bilevel",
  ),
  "mobilenetv2_224": FEW,
  "resnet18": tuple(name for name in ROWS if name != "ASGA, 5 in one jit"),
  "resnet20": FEW,
  "resnet50": FEW,
  "vit_ti": FEW,
}
# Not installed by default, and compared only where it is.
OPTIONAL = {"qwix w8a8": "qwix"}

_OUTPUT = flags.DEFINE_string("output", "runs/steps", "Where results go.")
_CASES = flags.DEFINE_multi_enum(
  "case",
  [name for name in CASES if name not in FOR_GPU],
  list(CASES),
  "Networks to measure.",
)
_ROWS = flags.DEFINE_multi_enum(
  "row", list(ROWS), list(ROWS), "Steps to measure, 'plain' always among them."
)
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Warm steps of each row.")


def compile_row(name: str, case: kinds.Case) -> tuple[dict[str, Any], Any]:
  """Compile one row.

  Returns:
    Its figures, and [compiled step, state, batches, calls that are timed
    together, steps that these make].
  """
  step = ROWS[name](case, lowering.conv_general_dilated)
  started = time.perf_counter()
  lowered = step.function.lower(step.state, *step.batches)
  traced = time.perf_counter()
  options = lowering.compiler_options() if step.own_options else {}
  compiled = lowered.compile(compiler_options=options)
  done = time.perf_counter()
  jax.clear_caches()  # Else it would be remembered, not read.
  clear = time.perf_counter()
  lowered.compile(compiler_options=options)
  read = time.perf_counter()
  memory = compiled.memory_analysis()
  figures = {
    "trace_s": traced - started,
    "compile_s": done - traced,
    "from_cache_s": read - clear,
    "temporary_mb": memory.temp_size_in_bytes / 1e6,
    "gflop": compiled.cost_analysis().get("flops", 0) / 1e9,
  }
  made = (step.together, step.together * step.steps)
  return figures, [compiled, step.state, step.batches, *made]


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
  """Keep compiled programs in a directory of their own, for the time being."""
  current: Any = jax.config
  before = current.jax_compilation_cache_dir
  least = current.jax_persistent_cache_min_compile_time_secs
  with tempfile.TemporaryDirectory() as directory:
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    try:
      yield
    finally:
      jax.config.update("jax_compilation_cache_dir", before)
      jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
      compilation_cache.reset_cache()


def measure(case: kinds.Case, rows: list[str], rounds: int) -> dict[str, Any]:
  """Measure the rows of one network in turns."""
  found: dict[str, Any] = {}
  running = {}
  for name in rows:
    try:
      found[name], running[name] = compile_row(name, case)
    except ModuleNotFoundError as error:
      if error.name != OPTIONAL.get(name):
        raise
      logging.warning("%s is left out: %s", name, error)
      continue
    logging.info("%s, %s: %s", case.name, name, found[name])
  times: dict[str, list[float]] = {name: [] for name in running}

  def run(row: Any, calls: int) -> None:
    for _ in range(calls):
      row[1], others = row[0](row[1], *row[2])
    jax.block_until_ready((row[1], others))

  # The first two rounds warm up.
  for count in range(rounds + 2):
    for name, row in running.items():
      # In a loop a step finds the memory that the step before it had; here
      # that was another row's, and perhaps smaller.
      run(row, 1)
      started = time.perf_counter()
      run(row, row[3])
      if count >= 2:
        times[name].append((time.perf_counter() - started) / row[4])
  base = found["plain"]
  for name, seconds in times.items():
    quartiles = statistics.quantiles(seconds, n=4)
    found[name] |= {
      "median_ms": 1e3 * statistics.median(seconds),
      "quartiles_ms": [1e3 * quartiles[0], 1e3 * quartiles[2]],
    }
    found[name]["time_ratio"] = found[name]["median_ms"] / base["median_ms"]
    found[name]["memory_ratio"] = (
      found[name]["temporary_mb"] / base["temporary_mb"]
    )
  return found


def format_table(case: kinds.Case, found: dict[str, Any]) -> str:
  """Lay out the rows of one network."""
  table = terminal.table(
    {
      "": name,
      "time": f"{row['time_ratio']:.2f}x",
      "median ms": f"{row['median_ms']:.0f}",
      "quartiles": "-".join(f"{x:.0f}" for x in row["quartiles_ms"]),
      "memory": f"{row['memory_ratio']:.2f}x",
      "MB": f"{row['temporary_mb']:.0f}",
      "GFLOP": f"{row['gflop']:.1f}",
      "trace s": f"{row['trace_s']:.1f}",
      "compile s": f"{row['compile_s']:.1f}",
      "cached s": f"{row['from_cache_s']:.1f}",
    }
    for name, row in found.items()
  )
  return f"{case.name}\n{table}"


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
  """Draw time and memory of every row as multiples of the plain step's."""
  figure = figure_lib.Figure(
    figsize=(9, 1 + 2.2 * len(results)), layout="constrained"
  )
  grid = figure.subplots(len(results), 2, squeeze=False)
  for axes_row, (name, found) in zip(grid, results.items(), strict=True):
    labels = list(reversed(found))
    for axes, key, title in zip(
      axes_row,
      ("time_ratio", "memory_ratio"),
      ("time of a step", "temporary memory"),
      strict=True,
    ):
      values = [found[label][key] for label in labels]
      bars = axes.barh(labels, values, color="C0")
      axes.bar_label(bars, fmt="%.2f", padding=2, fontsize="x-small")
      axes.axvline(1, color="0.5", linewidth=0.8)
      if key == "time_ratio":
        axes.axvline(2, color="0.5", linewidth=0.8, linestyle=":")
      else:
        axes.set_yticks([])
      axes.set_xlim(0, 1.15 * max(values))
      axes.tick_params(labelsize="x-small")
      axes.set_title(f"{CASES[name].name}: {title}", fontsize="x-small")
  grid[-1][0].set_xlabel("multiples of the plain step", fontsize="small")
  grid[-1][1].set_xlabel("multiples of the plain step", fontsize="small")
  figure.savefig(path, dpi=130)


def main(_: list[str]) -> None:
  """Measure all networks and write the results."""
  logging.set_verbosity(logging.INFO)
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  rows = [name for name in ROWS if name == "plain" or name in _ROWS.value]
  results = {}
  for name in _CASES.value:
    chosen = [row for row in rows if row in ROWS_OF.get(name, rows)]
    with empty_cache():
      results[name] = measure(CASES[name], chosen, _ROUNDS.value)
    text = json.dumps(
      {
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "rounds": _ROUNDS.value,
        "cases": results,
      },
      indent=2,
    )
    files.write_text_atomic(output / "steps.json", text + "\n")
    draw(results, output / "steps.png")
    print(format_table(CASES[name], results[name]), flush=True)


if __name__ == "__main__":
  app.run(main)
