"""Placement, and one device against eight."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asga_jax.training import sharding

# Fake devices must be asked for before jax starts, so a process of its own.
SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
import asga_jax
from asga_jax.training import loop, sharding

dtype = jnp.dtype(sys.argv[1])
compiled = []
jax.monitoring.register_event_duration_secs_listener(
  lambda name, *_, **__: compiled.append(name)
  if name.endswith("backend_compile_duration") else None)
assert jax.device_count() == 8

class Network(nnx.Module):
  def __init__(self, rngs):
    keys = {"rngs": rngs, "param_dtype": dtype}
    self.first = nnx.Conv(1, 4, (3, 3), **keys)
    self.norm = nnx.BatchNorm(4, **keys)
    self.head = nnx.Linear(4, 3, **keys)
  def __call__(self, x):
    x = nnx.relu(self.norm(self.first(x))).mean(axis=(1, 2))
    return self.head(x)

rng = np.random.default_rng(0)
batches = [
  {"image": rng.normal(size=(16, 6, 6, 1)).astype(dtype),
   "label": rng.integers(0, 3, 16).astype(np.int32)}
  for _ in range(10)]

def prepare(key, batch):
  # A draw for each image, as augmentation makes them.
  noise = jax.random.normal(key, batch["image"].shape, dtype)
  return {**batch, "image": batch["image"] + 0.1 * noise}

out = {}
for count in (1, 8):
  model = asga_jax.searchable(
    Network(nnx.Rngs(0)), batches[0]["image"],
    rules=[asga_jax.Rule(".*", weight_bits=(2, 4, 8),
                         activation_bits=(2, 4, 8))])
  search = asga_jax.start_search(
    model, budget="bops=4bit", prepare=prepare,
    mesh=sharding.data_mesh(jax.devices()[:count]),
    settings=asga_jax.SearchSettings(steps=10))
  records, counts = [], []
  def on_records(block):
    records.extend(block)
    counts.append(len(compiled))
  state = loop.run(search.step, search.state, batches, 10, search.mesh,
                   on_records=on_records, flush_every=1)
  assert len(state.multiplier.sharding.device_set) == count
  assert counts[0] > 0 and counts[-1] == counts[0], counts
  policy = asga_jax.allocate(asga_jax.finish_search(search, state))
  out[count] = {
    "losses": [float(r["loss"]) for r in records],
    "radii": [float(r["radius"]) for r in records],
    "dtype": str(jax.tree.leaves(state.params.weights)[0].dtype),
    "logits": [float(x) for rows in state.params.logits.values()
               for x in rows.ravel()],
    "bits": {path: (layer.weight_bits, layer.activation_bits)
             for path, layer in policy.layers.items()}}
json.dump(out, sys.stdout)
"""


def _run(dtype):
  """Runs the script at a type, on one device and on eight."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    # Without optimization it compiles twice as fast.
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
  }
  environment["JAX_ENABLE_X64"] = str(dtype == "float64")
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, dtype],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  return found["1"], found["8"]


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one_in_float32():
  one, eight = _run("float32")
  assert one["dtype"] == "float32"
  np.testing.assert_allclose(one["losses"][:5], eight["losses"][:5], atol=1e-5)
  np.testing.assert_allclose(one["radii"][:5], eight["radii"][:5], rtol=1e-2)
  # They learn: equal losses are not those of a step that does nothing.
  assert len(set(one["losses"])) == 10


def test_eight_devices_find_the_policy_of_one_in_float64():
  one, eight = _run("float64")
  assert one["dtype"] == "float64"
  np.testing.assert_allclose(one["losses"], eight["losses"], rtol=1e-10)
  np.testing.assert_allclose(one["radii"], eight["radii"], rtol=1e-7)
  np.testing.assert_allclose(one["logits"], eight["logits"], atol=1e-8)
  assert len(set(one["losses"])) == 10
  assert max(map(abs, one["logits"])) > 0.01
  assert one["bits"] == eight["bits"]


def test_copies_do_not_alias_what_they_were_made_of():
  mesh = sharding.data_mesh()
  tree = {"a": jnp.arange(3.0), "key": jax.random.key(1)}
  placed = sharding.place_replicated(tree, mesh)
  assert placed["a"].sharding == sharding.replicated(mesh)
  placed["a"].delete()
  np.testing.assert_array_equal(tree["a"], [0, 1, 2])
  np.testing.assert_array_equal(
    jax.random.key_data(placed["key"]), jax.random.key_data(tree["key"])
  )


def test_a_batch_is_split_over_the_data_axis():
  mesh = sharding.data_mesh()
  batch = {"image": np.arange(mesh.size * 6.0).reshape(-1, 3)}
  placed = sharding.place_batch(batch, mesh)["image"]
  assert placed.sharding == sharding.batch_sharding(mesh)
  np.testing.assert_array_equal(placed, batch["image"])


@pytest.mark.parametrize("batch_size", [0, -8, 7, 12])
def test_a_batch_that_does_not_split_is_named(batch_size):
  class EightDevices:
    size = 8

  with pytest.raises(ValueError, match=f"batch_size={batch_size} .* 8 devices"):
    sharding.check_batch_size(batch_size, EightDevices)


@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_multiples_of_the_devices_alone_split(size):
  class Mesh:
    pass

  mesh = Mesh()
  mesh.size = size
  refused = set()
  for batch_size in range(1, 25):
    try:
      sharding.check_batch_size(batch_size, mesh)
    except ValueError:
      refused.add(batch_size)
  assert set(range(1, 25)) - refused == set(range(size, 25, size))
