"""Placement, and one device against eight."""

import functools
from typing import ClassVar

import fake_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from asga_jax.training import placement, sharding

# Fake devices must be asked for before jax starts, so a process of its own.
SCRIPT = (
  fake_devices.NETWORK
  + """
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

rng = np.random.default_rng(0)
batches = [
  {"image": rng.normal(size=(16, 6, 6, 1)).astype(dtype),
   "label": rng.integers(0, 3, 16).astype(np.int32)}
  for _ in range(20)]

def prepare(key, batch):
  # A draw for each image, as augmentation makes them.
  noise = jax.random.normal(key, batch["image"].shape, dtype)
  return {**batch, "image": batch["image"] + 0.1 * noise}

# Name -> devices, those along `model`, and which leaves lie in parts.
FSDP = (("weights/first/kernel", (None, None, None, "model")),
        ("weights/", "data"))
layouts = {
  "one": (1, 1, ()), "eight": (8, 1, ()), "four by two": (8, 2, ()),
  "in parts": (8, 2, FSDP)}
out = {}
for case in sys.argv[2:]:
  count, along, shard = layouts[case]
  model = asga_jax.searchable(
    Network(nnx.Rngs(0), dtype), batches[0]["image"],
    rules=[asga_jax.Rule(".*", weight_bits=(2, 4, 8),
                         activation_bits=(2, 4, 8))])
  search = asga_jax.start_search(
    model, budget="bops=4bit", prepare=prepare,
    mesh=sharding.data_mesh(jax.devices()[:count], model=along),
    settings=asga_jax.SearchSettings(steps=20, shard=shard))
  records, counts = [], []
  def on_records(block):
    records.extend(block)
    counts.append(len(compiled))
  state = loop.run(search.step, search.state, batches, 20, search.mesh,
                   on_records=on_records, flush_every=1)
  assert len(state.multiplier.sharding.device_set) == count
  assert counts[0] > 0 and counts[-1] == counts[0], counts
  policy = asga_jax.allocate(asga_jax.finish_search(search, state))
  kernel = state.params.weights["first"]["kernel"]
  head = state.params.weights["head"]["kernel"]
  momenta = [x for path, x in jax.tree_util.tree_flatten_with_path(
    state.optimizer)[0] if "head" in str(path) and "kernel" in str(path)]
  out[case] = {
    "parts": [
      x.sharding.shard_shape(x.shape) for x in (kernel, head, *momenta)],
    "losses": [float(r["loss"]) for r in records],
    "radii": [float(r["radius"]) for r in records],
    "dtype": str(jax.tree.leaves(state.params.weights)[0].dtype),
    "logits": [float(x) for rows in state.params.logits.values()
               for x in rows.ravel()],
    "bits": {path: (layer.weight_bits, layer.activation_bits)
             for path, layer in policy.layers.items()}}
json.dump(out, sys.stdout)
"""
)


def _run(dtype, *layouts):
  """Runs the script at a type, on devices laid out in each way."""
  found = fake_devices.run(
    SCRIPT,
    dtype,
    *layouts,
    devices=8,
    flags=fake_devices.UNOPTIMIZED,
    x64=dtype == "float64",
  )
  for each in found.values():
    assert each["dtype"] == dtype
    # They learn: equal losses are not those of a step that does nothing.
    assert len(set(each["losses"])) == 20
    assert max(map(abs, each["logits"])) > 0.01
  return [found[name] for name in layouts]


@pytest.mark.slow
def test_all_layouts_give_the_losses_of_one_device_in_float32():
  one, *others = _run("float32", "one", "eight", "four by two", "in parts")
  for each in others:
    np.testing.assert_allclose(one["losses"][:5], each["losses"][:5], atol=1e-5)
    np.testing.assert_allclose(one["radii"][:5], each["radii"][:5], rtol=1e-2)


def _same(one, other):
  np.testing.assert_allclose(one["losses"], other["losses"], rtol=1e-10)
  np.testing.assert_allclose(one["radii"], other["radii"], rtol=1e-7)
  np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-8)
  assert one["bits"] == other["bits"]


@pytest.mark.slow
def test_a_state_in_parts_finds_the_policy_of_one_device_in_float64():
  one, parts = _run("float64", "one", "in parts")
  _same(one, parts)
  assert one["parts"][:2] == [[3, 3, 1, 4], [4, 3]]
  # The kernel's features lie in halves, the head's inputs and their momentum
  # in quarters.
  assert parts["parts"][:2] == [[3, 3, 1, 2], [1, 3]]
  assert parts["parts"][2:]
  assert all(shape == [1, 3] for shape in parts["parts"][2:])


@pytest.mark.slow
def test_eight_devices_find_the_policy_of_one_in_float64():
  one, *others = _run("float64", "one", "eight", "four by two")
  for each in others:
    _same(one, each)


def test_rules_of_parts_are_checked():
  mesh = sharding.data_mesh()
  state = {"weights": {"a": jnp.zeros((3, 4)), "b": jnp.zeros(())}}
  place = functools.partial(placement.state_shardings, state, mesh)
  found = place([("a$", (None, "data")), ("weights", "data")])
  assert found["weights"]["a"].spec == PartitionSpec(None, "data")
  # Nothing of a number can be split.
  assert found["weights"]["b"].spec == PartitionSpec()
  for rules, said in (
    ([("kernel", "data")], "'kernel', which is that of no leaf"),
    ([("a$", "data"), ("s/a", "data")], "'s/a', which is that of no leaf"),
    ([("a$", "rows")], "the axis 'rows'; expected one of the mesh, data, mod"),
    ([("a$", (None, None, "data"))], "expected dimensions that divide"),
  ):
    with pytest.raises(ValueError, match=said):
      place(rules)
  for rule in (("a",), ("a", 3), ("(", "data"), "ab"):
    with pytest.raises(ValueError, match=r"shard has .*expected"):
      placement.check_rules([rule])


@pytest.mark.parametrize("model", [0, 7])
def test_devices_that_cannot_be_laid_out_are_named(model):
  with pytest.raises(ValueError, match=f"{model} devices along .* divisor"):
    sharding.data_mesh(jax.devices()[:1], model=model)


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
    shape: ClassVar = {"data": 8, "model": 3}

  with pytest.raises(ValueError, match=f"batch_size={batch_size} .* 8 devices"):
    sharding.check_batch_size(batch_size, EightDevices)


@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_multiples_of_the_devices_alone_split(size):
  class Mesh:
    pass

  mesh = Mesh()
  mesh.shape = {"data": size}
  refused = set()
  for batch_size in range(1, 25):
    try:
      sharding.check_batch_size(batch_size, mesh)
    except ValueError:
      refused.add(batch_size)
  assert set(range(1, 25)) - refused == set(range(size, 25, size))
