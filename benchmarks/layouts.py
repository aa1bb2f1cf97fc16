"""What a search's step needs of each device, whole or in parts.

Compiles the step of a search (SGD with momentum, two passes, 6 candidates for
every tensor) on as many fake devices of this CPU, with the state whole on each
of them and in parts along `data` (or with other settings, see LAYOUTS), and
prints what each device holds and what
travels. Nothing is run; batches grow with the devices. Compiling one takes
minutes.

python benchmarks/layouts.py --model=resnet50 --devices=1,4,16
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import tabulate
from absl import app, flags, logging

_MODEL = flags.DEFINE_string("model", "resnet50", "Of models.CONSTRUCTORS.")
_DEVICES = flags.DEFINE_list("devices", ["1", "4", "16"], "How many.")
_SIZE = flags.DEFINE_integer("size", 224, "Of images.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Images of each device.")
_LAYOUTS = flags.DEFINE_list("layouts", ["whole", "in parts"], "Of LAYOUTS.")
_OUTPUT = flags.DEFINE_string("output", "runs/layouts", "Where cells go.")
_ONE = flags.DEFINE_string("one", "", "Compile one layout in this process.")

# Name -> what differs from the default settings.
LAYOUTS: dict[str, dict[str, Any]] = {
  "whole": {},
  "in parts": {"shard": (("weights/", "data"),)},
  "accumulating": {"accumulate": 4},
  "normed by shard": {"batch_norm": "shard"},
  "normed by shard and accumulating": {"batch_norm": "shard", "accumulate": 4},
  "bfloat16": {"compute_dtype": "bfloat16"},
  "skipping": {"skip_nonfinite": 1},
}


def compile_one(devices: int, layout: str) -> dict[str, Any]:
  """Compile one step on all devices of this process, and read its costs."""
  import compiled_costs
  import jax
  import jax.numpy as jnp
  from flax import nnx

  import asga_jax
  from asga_jax import models
  from asga_jax.training import sharding
  from asga_jax.xla import lowering

  shape = _SIZE.value, _SIZE.value, 3
  network = models.constructor(_MODEL.value)(
    1000,
    conv_general_dilated=lowering.conv_general_dilated,
    rngs=nnx.Rngs(0),
  )
  search = asga_jax.start_search(
    asga_jax.searchable(network, jax.ShapeDtypeStruct((1, *shape), "float32")),
    budget="bops=4bit",
    settings=asga_jax.SearchSettings(steps=10, **LAYOUTS[layout]),
    mesh=sharding.data_mesh(jax.devices()[:devices]),
  )
  images = devices * _BATCH.value
  batch = {
    "image": jax.ShapeDtypeStruct((images, *shape), jnp.float32),
    "label": jax.ShapeDtypeStruct((images,), jnp.int32),
  }
  step: Any = search.step
  compiled = step.lower(search.state, batch).compile()
  return compiled_costs.read(compiled)._asdict()


def main(_: list[str]) -> None:
  """Compile each layout in a process of its own, and print the table."""
  logging.set_verbosity(logging.INFO)
  if _ONE.value:
    count, layout = _ONE.value.split(",", 1)
    print(json.dumps(compile_one(int(count), layout)))
    return
  folder = pathlib.Path(_OUTPUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  rows = []
  for devices in map(int, _DEVICES.value):
    for layout in _LAYOUTS.value:
      if devices == 1 and layout == "in parts":
        continue
      stem = f"{_MODEL.value}_{_SIZE.value}_{_BATCH.value}_{devices}_{layout}"
      path = folder / f"{stem.replace(' ', '_')}.json"
      if not path.exists():
        path.write_text(_in_process(devices, layout))
      found = json.loads(path.read_text())
      rows.append(
        (
          devices,
          layout,
          *(
            f"{found[k] / 2**20:.0f}"
            for k in ("arguments", "temporary", "peak")
          ),
          f"{found['flops'] / 1e9:.0f}",
          ", ".join(
            f"{kind} {size / 2**20:.0f}"
            for kind, size in sorted(found["collectives"].items())
          )
          or "-",
        )
      )
  headers = (
    "devices",
    "state",
    "held, MiB",
    "temporary",
    "peak",
    "GFLOP",
    "what travels, MiB",
  )
  print(f"{_MODEL.value}, {_SIZE.value}x{_SIZE.value}, {_BATCH.value} a device")
  print(tabulate.tabulate(rows, headers, tablefmt="plain"))


def _in_process(devices: int, layout: str) -> str:
  flag = f"--xla_force_host_platform_device_count={devices}"
  command = [sys.executable, *sys.argv, f"--one={devices},{layout}"]
  done = subprocess.run(
    command,
    env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return done.stdout.splitlines()[-1]


if __name__ == "__main__":
  app.run(main)
