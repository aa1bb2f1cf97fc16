"""Steps of two processes in float64 against those of one."""

import json
import subprocess
import sys

import fake_devices
import numpy as np
import pytest
from started import ROOT, environment_with, free_port

pytestmark = pytest.mark.slow
# 20 steps in float64 of a state that lies whole or in parts, and its
# checkpoint, which another number of processes reads.
STEPS = (
  fake_devices.NETWORK
  + """
import json, sys
from asga_jax.runs import meeting
port, count, index, way, folder, mode = sys.argv[1:]
count, index = int(count), int(index)
if count > 1:
  meeting.join(f"localhost:{port}", count, index)
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
import asga_jax
from asga_jax.runs import checkpoints
from asga_jax.training import loop, sharding

rng = np.random.default_rng(0)
share = slice(16 * index // count, 16 * (index + 1) // count)
example = rng.normal(size=(16, 6, 6, 1))
batches = [
  {"image": rng.normal(size=(16, 6, 6, 1))[share],
   "label": rng.integers(0, 3, 16).astype(np.int32)[share]}
  for _ in range(20)]

def prepare(key, batch):
  noise = jax.random.normal(key, batch["image"].shape, jnp.float64)
  return {**batch, "image": batch["image"] + 0.1 * noise}

shard = (("weights/", "data"),) if way == "parts" else ()
model = asga_jax.searchable(
  Network(nnx.Rngs(0), jnp.float64), example,
  rules=[asga_jax.Rule(".*", weight_bits=(2, 4, 8),
                       activation_bits=(2, 4, 8))])
made = asga_jax.start_search(
  model, budget="bops=4bit", prepare=prepare,
  settings=asga_jax.SearchSettings(steps=20, shard=shard))
records = []
first, state = 0, made.state
if mode == "go on":
  first, state = checkpoints.restore_latest(folder, state)
kernel = state.params.weights["first"]["kernel"]
state = loop.run(made.step, state, batches[first:], 20, made.mesh,
                 on_records=records.extend, flush_every=1,
                 stop=lambda: mode == "begin" and len(records) == 9)
if mode == "begin":
  with checkpoints.Checkpoints(folder) as kept:
    kept.save(int(state.step), state)
found = asga_jax.finish_search(made, state)
policy = asga_jax.allocate(found)
print(json.dumps({
  "parts": kernel.sharding.shard_shape(kernel.shape),
  "devices": jax.device_count(),
  "losses": [float(r["loss"]) for r in records],
  "scores": [float(x) for rows in found.scores[found.score].values()
             for x in rows.ravel()],
  "bits": {path: (layer.weight_bits, layer.activation_bits)
           for path, layer in policy.layers.items()}}))
"""
)


def steps(environment, folder, *, count=1, devices=1, way="whole", mode="run"):
  """Runs STEPS in so many processes and gives what each found."""
  port = free_port()
  count_flag = f"--xla_force_host_platform_device_count={devices}"
  xla_flags = " ".join((count_flag, *fake_devices.UNOPTIMIZED))
  started = [
    subprocess.Popen(
      [
        *(sys.executable, "-c", STEPS),
        *(str(port), str(count), str(index), way, str(folder), mode),
      ],
      cwd=ROOT,
      env={**environment, "JAX_ENABLE_X64": "1", "XLA_FLAGS": xla_flags},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]
  found = []
  for process in started:
    told, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    found.append(json.loads(told.splitlines()[-1]))
  for each in found:
    assert each == found[0]
    assert each["devices"] == count * devices
  return found[0]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  return environment_with(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def of_one(environment, tmp_path_factory):
  return steps(environment, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("way", ["whole", "parts"])
def test_in_float64_two_by_two_devices_are_one(
  environment, of_one, tmp_path, way
):
  found = steps(environment, tmp_path, count=2, devices=2, way=way)
  shape = [3, 3, 1, 4]
  assert found["parts"] == (shape if way == "whole" else [3, 3, 1, 1])
  assert len(found["losses"]) == 20
  np.testing.assert_allclose(
    found["losses"], of_one["losses"], rtol=0, atol=1e-10
  )
  np.testing.assert_allclose(
    found["scores"], of_one["scores"], rtol=0, atol=1e-8
  )
  assert found["bits"] == of_one["bits"]


def test_a_state_in_parts_on_two_processes_goes_on_in_one(
  environment, of_one, tmp_path
):
  begun = steps(
    environment, tmp_path, count=2, devices=2, way="parts", mode="begin"
  )
  assert len(begun["losses"]) == 10
  # The checksums are those of whole arrays, whoever asks.
  index = (tmp_path / "10" / "index" / "metadata").read_text()
  assert "crc32" in index
  assert '"crc32": null' not in index
  found = steps(environment, tmp_path, mode="go on")
  np.testing.assert_allclose(
    begun["losses"] + found["losses"], of_one["losses"], rtol=0, atol=1e-10
  )
  assert found["bits"] == of_one["bits"]
