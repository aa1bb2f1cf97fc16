"""Where the wall time of a search goes: to the first step, in steps, elsewhere.

Runs launch/search.py as a user does, with an empty cache of compiled programs
until its first step and then with a full one to its end. Then compares, in
turns and in one process, the loop of a search (batches, figures, progress, a
checkpoint) with the bare compiled step on one batch that is on the device.
Prints a table, and writes it to --output.

python benchmarks/wall.py --output=runs/wall
"""

import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from asga_jax import data as data_lib
from asga_jax import files, search_run
from asga_jax.data import batches as batches_lib
from asga_jax.training import ahead, sharding

ROOT = pathlib.Path(__file__).parents[1]

_CONFIG = config_flags.DEFINE_config_file(
  "config", str(ROOT / "configs" / "mobilenetv2.py"), "A file of configs/."
)
_OUTPUT = flags.DEFINE_string("output", "runs/wall", "Where results go.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Loops of each kind.")
_STEPS = flags.DEFINE_integer("steps", 100, "Steps of such a loop.")


def run_command(arguments: list[str], cache: str, *, stop: bool) -> dict:
  """Run launch/search.py and take the times at which it says what it does.

  Args:
    arguments: its flags.
    cache: the directory of compiled programs.
    stop: whether to kill it after its first step.

  Returns:
    Seconds from the command to its first step, to its last and to its end
    (with `stop`, those to its first step alone), and what it says of compiling.
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
        if stop:
          process.send_signal(signal.SIGKILL)
      if step and step[1] == step[2]:
        found["last_step"] = now
  found["end"] = time.perf_counter() - started
  if "first_step" not in found or (process.returncode and not stop):
    raise RuntimeError(f"{command} failed: {''.join(said[-5:])}")
  return found


def compare_loops(config: Any, rounds: int, steps: int) -> dict[str, Any]:
  """Time the loop of a search against its bare step, in turns.

  Args:
    config: of the search.
    rounds: how often each.
    steps: of one loop.

  Returns:
    Seconds of every loop: {'loop': [...], 'bare': [...]}.
  """
  dataset = data_lib.load(config.data.name, data_dir=config.data.dir or None)
  splits = data_lib.split_proxy(dataset, heldout_fraction=0.0, seed=0)
  config.search.steps = steps
  made = search_run.start(config, dataset, splits)
  raw = batches_lib.batch_at(
    splits.train, 0, batch_size=config.batch_size, seed=0
  )
  batch = sharding.place_batch(raw, made.mesh)
  made = made._replace(step=ahead.compile_step(made.step, made.state, batch))

  def fresh() -> Any:
    return jax.block_until_ready(
      sharding.place_replicated(made.state, made.mesh)
    )

  found: dict[str, list[float]] = {"loop": [], "bare": []}
  # The first round warms up.
  for count in range(rounds + 1):
    with tempfile.TemporaryDirectory() as directory:
      state = fresh()
      started = time.perf_counter()
      state = search_run.train(
        config, made, state, splits, pathlib.Path(directory), None, {}
      )
      jax.block_until_ready(state)
      loop = time.perf_counter() - started
    state = fresh()
    started = time.perf_counter()
    for _ in range(steps):
      state, figures = made.step(state, batch)
    jax.block_until_ready((state, figures))
    bare = time.perf_counter() - started
    if count:
      found["loop"].append(loop)
      found["bare"].append(bare)
  return found


def format_table(found: dict[str, Any]) -> str:
  """Lay out the times."""
  cold, warm, loops = found["cold"], found["warm"], found["loops"]
  steps = found["steps"]
  ratios = [
    1 - bare / loop
    for loop, bare in zip(loops["loop"], loops["bare"], strict=True)
  ]
  a_step = statistics.median(loops["bare"]) / found["loop_steps"]
  outside = 1 - steps * a_step / warm["end"]
  rows = [
    ("command to first step, empty cache", cold["first_step"]),
    ("  of it tracing", cold["trace"]),
    ("  of it compiling", cold["compile"]),
    ("command to first step, full cache", warm["first_step"]),
    ("  of it tracing", warm["trace"]),
    ("  of it loading the compiled step", warm["compile"]),
    (f"steps 2 to {steps}", warm["last_step"] - warm["first_step"]),
    ("evaluation, plots, result", warm["end"] - warm["last_step"]),
    ("whole run, full cache", warm["end"]),
  ]
  lines = [f"{name:42}{seconds:>8.1f} s" for name, seconds in rows]
  lines += [
    f"{'outside the step, of the whole run':42}{100 * outside:>8.1f} %",
    f"{'outside the step, of the loop':42}"
    f"{100 * statistics.median(ratios):>8.1f} %  "
    f"({100 * min(ratios):.1f} to {100 * max(ratios):.1f}, {len(ratios)} loops "
    f"of {found['loop_steps']} steps)",
  ]
  return "\n".join(lines)


def main(_: list[str]) -> None:
  """Measure, print and write."""
  logging.set_verbosity(logging.INFO)
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  config = _CONFIG.value
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  found: dict[str, Any] = {
    "steps": config.search.steps,
    "loop_steps": _STEPS.value,
  }
  with tempfile.TemporaryDirectory() as directory:
    cache = f"{directory}/compiled"
    for kind in ("cold", "warm"):
      arguments = [f"--config={name}", f"--workdir={directory}/{kind}"]
      found[kind] = run_command(arguments, cache, stop=kind == "cold")
      logging.info("%s: %s", kind, found[kind])
  found["loops"] = compare_loops(config, _ROUNDS.value, _STEPS.value)
  files.write_text_atomic(
    output / "wall.json", json.dumps(found, indent=2) + "\n"
  )
  print(format_table(found))


if __name__ == "__main__":
  app.run(main)
