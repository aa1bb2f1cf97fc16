"""What a search would need of a TPU pod, without one.

Compiles the step of a search as the configurations have it (ImageNet at 224x224
with 1000 classes, or CIFAR-10 at 32x32) on this CPU for slices of TPU v5e, and
prints what one chip holds, computes, reads and sends; what follows for the time
of a step from the chip's published peaks, and for that of a whole search; and
what that would cost. Nothing is run: times are bounds from below, which a real
step reaches to a part. A batch that does not fit a chip is halved until it
does. Compiling one cell takes from minutes to an hour of one core; each is kept
in --output, so that a killed run goes on, and --kept prints what is there.

Needs libtpu, which nothing else here does: pip install 'libtpu==0.0.42.*'

python benchmarks/tpu_plan.py --chips=4,16,64,256
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import compiled_costs
import jax
import tabulate
from absl import app, flags, logging
from jax.experimental import topologies

from asga_jax import data as data_lib
from asga_jax import files, models, search
from asga_jax.data import batches as batches_lib
from asga_jax.runs import config as config_lib
from asga_jax.runs import search as run_search
from asga_jax.runs import variants
from asga_jax.training import compiled, sharding
from asga_jax.xla import compile_cache

_MODEL = flags.DEFINE_list(
  "model", ["resnet18", "resnet50", "mobilenet_v2"], "Of models.CONSTRUCTORS."
)
_TASK = flags.DEFINE_list("task", ["imagenet"], "imagenet, cifar10 or both.")
_CHIPS = flags.DEFINE_list("chips", ["4", "16", "64", "256"], "How many.")
_BATCH = flags.DEFINE_integer(
  "batch_size", 0, "Of all chips; 0 for the task's own."
)
_EFFORT = flags.DEFINE_float(
  "effort",
  0.0,
  "XLA's exec_time_optimization_effort: -1 compiles in half the time, to a "
  "program that may need more memory.",
)
_PRICE = flags.DEFINE_float(
  "price",
  1.2,
  "US dollars for a chip and hour: of v5e on demand in the US, as others "
  "quoted it in August 2026; look it up at cloud.google.com/tpu/pricing.",
)
_KEPT = flags.DEFINE_bool("kept", False, "Compile nothing: print what is kept.")
_OUTPUT = flags.DEFINE_string("output", "runs/tpu_plan", "Where cells go.")

# Of one v5e chip, https://docs.cloud.google.com/tpu/docs/v5e: products of
# bfloat16 a second, bytes a second from memory, and bytes of it. A chip's links
# move 400 GB a second both ways together, so half of that out.
FLOPS, BANDWIDTH, MEMORY, SENT = 197e12, 819e9, 16e9, 200e9
TOPOLOGIES = {4: "v5e:2x2", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}


@dataclasses.dataclass(frozen=True)
class Task:
  """What is searched on."""

  variant: str  # of the configurations
  info: data_lib.DatasetInfo
  batch_size: int
  epochs: int

  @property
  def images(self) -> int:
    """Count the images of a whole search."""
    return self.epochs * self.info.train_images


def _info(name: str, size: int, classes: int, images: int) -> Any:
  names = tuple(map(str, range(classes)))
  return data_lib.DatasetInfo(name, (size, size, 3), names, images)


TASKS = {
  "imagenet": Task(
    "imagenet", _info("imagenet", 224, 1000, 1_281_167), 4096, 1
  ),
  "cifar10": Task("cifar10", _info("cifar10", 32, 10, 50_000), 256, 25),
}


def make_search(task: Task, model: str) -> search.Search:
  """Start the search of a configuration, without its images."""
  config = config_lib.default_config()
  config.model = model
  variants.apply_variant(config, task.variant)
  config.batch_size = task.batch_size
  return run_search.build_search(config, task.info, trained=False)


def compile_step(
  made: search.Search, task: Task, chips: int, batch_size: int
) -> dict[str, Any]:
  """Compile a step for so many chips, and read what it needs of each.

  Returns:
    The figures of `compiled_costs.Costs`, 'code' in bytes and 'fits'; of a
    program that XLA refuses since it does not fit, 'needs' in bytes and 'fits'.
  """
  slice_ = topologies.get_topology_desc(
    platform="tpu", topology_name=TOPOLOGIES[chips]
  )
  mesh = sharding.data_mesh(list(slice_.devices))
  state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made.state
  )
  step: Any = compiled.compile_step(made.parts, mesh, bilevel=False)
  lowered = step.lower(state, batches_lib.batch_shapes(task.info, batch_size))
  started, used = time.perf_counter(), time.process_time()
  options = {}
  if _EFFORT.value:
    options["exec_time_optimization_effort"] = _EFFORT.value
  try:
    program = lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    needs = re.search(r"Used ([\d.]+)([MGT]) of", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or needs is None:
      raise
    scale = {"M": 2**20, "G": 2**30, "T": 2**40}[needs[2]]
    found: dict[str, Any] = {"needs": float(needs[1]) * scale, "fits": False}
  else:
    found = compiled_costs.read(program)._asdict()
    memory: Any = program.memory_analysis()
    found["code"] = memory.generated_code_size_in_bytes
    found["fits"] = found["peak"] + found["code"] <= MEMORY
  found["compile_s"] = time.perf_counter() - started
  found["compile_cpu_s"] = time.process_time() - used
  return found


def times(found: Mapping[str, Any], chips: int) -> dict[str, float]:
  """Bound the time of a step from below by each of a chip's peaks.

  Args:
    found: from `compile_step`.
    chips: how many.

  Returns:
    Seconds to compute, to read and write memory, and to send: a ring sends
    what it reduces twice, and what it gathers or scatters once.
  """
  share = (chips - 1) / chips
  factors = {"all-reduce": 2, "reduce-scatter": chips}
  sent = sum(
    factors.get(kind, 1) * share * size
    for kind, size in found["collectives"].items()
  )
  return {
    "compute": found["flops"] / FLOPS,
    "memory": found["accessed"] / BANDWIDTH,
    "links": sent / SENT,
  }


def row(
  name: str, model: str, chips: int, batch_size: int, found: Mapping[str, Any]
) -> tuple[Any, ...]:
  """Lay a cell out for the table."""
  head = name, model, chips, batch_size
  if "needs" in found:
    return (*head, "", "", f"{found['needs'] / 1e9:.1f}, too much")
  bound = times(found, chips)
  step = max(bound.values())
  hours = step * TASKS[name].images / batch_size / 3600
  return (
    *head,
    f"{found['arguments'] / 1e9:.2f}",
    f"{found['temporary'] / 1e9:.2f}",
    f"{(found['peak'] + found['code']) / 1e9:.2f}"
    + ", too much" * (not found["fits"]),
    f"{found['flops'] / 1e12:.2f}",
    f"{found['accessed'] / 1e9:.1f}",
    ", ".join(
      f"{kind} {size / 1e6:.1f}"
      for kind, size in sorted(found["collectives"].items())
    )
    or "-",
    " / ".join(f"{1e3 * seconds:.1f}" for seconds in bound.values()),
    f"{60 * hours:.1f}",
    f"{hours * chips * _PRICE.value:.2f}",
  )


HEADERS = (
  "search on",
  "network",
  "chips",
  "batch",
  "held, GB",
  "temporary",
  "peak",
  "TFLOP",
  "read and written, GB",
  "what travels, MB",
  "compute / memory / links, ms",
  "whole search, min",
  "US $",
)


def _path(name: str, model: str, chips: int, batch_size: int) -> pathlib.Path:
  effort = f"_effort{_EFFORT.value:g}" if _EFFORT.value else ""
  stem = f"{name}_{model}_{chips}_{batch_size}{effort}"
  return pathlib.Path(_OUTPUT.value) / f"{stem}.json"


def cells(
  name: str, model: str, chips: int, started: dict[Any, search.Search]
) -> list[tuple[Any, ...]]:
  """Compile the step with smaller and smaller batches, until it fits a chip."""
  task, rows = TASKS[name], []
  batch_size = _BATCH.value or task.batch_size
  while batch_size >= chips:
    path = _path(name, model, chips, batch_size)
    if not path.exists():
      if _KEPT.value:
        break
      if (name, model) not in started:
        started[name, model] = make_search(task, model)
      logging.info("compiling %s", path.stem)
      made = compile_step(started[name, model], task, chips, batch_size)
      files.write_text_atomic(path, json.dumps(made, indent=2) + "\n")
    found = json.loads(path.read_text())
    rows.append(row(name, model, chips, batch_size, found))
    if found["fits"]:
      break
    needs = found.get("needs") or found["peak"] + found["code"]
    while needs > MEMORY and batch_size >= chips:
      batch_size, needs = batch_size // 2, needs / 2
  return rows


def main(_: list[str]) -> None:
  """Fill all cells, the smallest slices first, and print the table."""
  logging.set_verbosity(logging.INFO)
  for flag, known in (
    (_MODEL, models.CONSTRUCTORS),
    (_TASK, TASKS),
    (_CHIPS, [str(x) for x in TOPOLOGIES]),
  ):
    wrong = sorted({*flag.value} - {*known})
    if wrong:
      sys.exit(f"--{flag.name}={wrong[0]}: expected some of {', '.join(known)}")
  # Else libtpu asks the network for a TPU at hand.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  compile_cache.enable()
  pathlib.Path(_OUTPUT.value).mkdir(parents=True, exist_ok=True)
  started: dict[Any, search.Search] = {}
  rows = [
    line
    for chips in map(int, _CHIPS.value)
    for name in _TASK.value
    for model in _MODEL.value
    for line in cells(name, model, chips, started)
  ]
  print(
    tabulate.tabulate(rows, HEADERS, tablefmt="plain", disable_numparse=True)
  )


if __name__ == "__main__":
  app.run(main)
