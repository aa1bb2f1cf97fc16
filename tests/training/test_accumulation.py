"""Micro-batches against the step of the whole batch."""

import fake_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asga_jax
from asga_jax.training import accumulation, loop, sharding

SCRIPT = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
import asga_jax
from asga_jax.training import loop, sharding

class Network(nnx.Module):
  def __init__(self, rngs):
    keys = {"rngs": rngs, "param_dtype": jnp.float64}
    self.first = nnx.Linear(6, 4, **keys)
    self.norm = nnx.LayerNorm(4, **keys)
    self.head = nnx.Linear(4, 3, **keys)
  def __call__(self, x):
    return self.head(nnx.relu(self.norm(self.first(x))))

rng = np.random.default_rng(0)
batches = [
  {"image": rng.normal(size=(16, 6)),
   "label": rng.integers(0, 3, 16).astype(np.int32)} for _ in range(3)]
model = asga_jax.searchable(
  Network(nnx.Rngs(0)), batches[0]["image"],
  rules=[asga_jax.Rule(".*", weight_bits=(2, 4), activation_bits=(2, 4))])

def prepare(key, batch):
  # A draw for each image, as augmentation makes them.
  noise = jax.random.normal(key, batch["image"].shape)
  return {**batch, "image": batch["image"] + 0.1 * noise}

FSDP = (("weights/", "data"),)
cases = {
  "one": (1, {}), "four": (4, {"accumulate": 2}),
  "one bilevel": (1, {"mode": "bilevel"}),
  "four bilevel": (4, {"mode": "bilevel", "accumulate": 4}),
  "four in parts": (4, {"accumulate": 2, "shard": FSDP}),
  "four shards": (4, {"perturbation": "shard"}),
  "four shards accumulating": (4, {"perturbation": "shard", "accumulate": 2}),
  "four shards in parts": (
    4, {"perturbation": "shard", "accumulate": 2, "shard": FSDP}),
  "four normed": (4, {"batch_norm": "shard", "accumulate": 2})}
out = {}
for name in sys.argv[1:]:
  count, changed = cases[name]
  search = asga_jax.start_search(
    model, budget="bops=4bit", prepare=prepare,
    mesh=sharding.data_mesh(jax.devices()[:count]),
    settings=asga_jax.SearchSettings(steps=2, **changed))
  pairs = search.settings.mode == "bilevel"
  data = list(zip(batches, batches[1:])) if pairs else batches
  placed = jax.tree.map(
    lambda x: sharding.place_batch(x, search.mesh), data[0])
  step = search.step.lower(
    search.state, *(placed if pairs else (placed,))).compile()
  records = []
  state = loop.run(step, search.state, data, 2, search.mesh,
                   pairs=pairs, on_records=records.extend)
  out[name] = {
    "kinds": sorted(set(re.findall(
      "(all-gather|all-to-all|collective-permute|reduce-scatter)\\\\(",
      step.as_text()))),
    "weights": [np.ravel(x).tolist() for x in jax.tree.leaves(
      state.params.weights)],
    "others": [np.ravel(x).tolist() for x in jax.tree.leaves(state)
               if jnp.issubdtype(x.dtype, jnp.floating)],
    "figures": [{k: float(v) for k, v in r.items()} for r in records]}
json.dump(out, sys.stdout)
"""


def _run(*cases):
  found = fake_devices.run(
    SCRIPT, *cases, devices=4, flags=fake_devices.UNOPTIMIZED, x64=True
  )
  return [found[name] for name in cases]


def _assert_same(one, other):
  for name, near in (("weights", 1e-10), ("others", 1e-7)):
    for a, b in zip(one[name], other[name], strict=True):
      # Step sizes and grids are kept in float32.
      np.testing.assert_allclose(a, b, rtol=near, atol=near)
  for a, b in zip(one["figures"], other["figures"], strict=True):
    assert a.keys() == b.keys()
    np.testing.assert_allclose(
      list(a.values()), list(b.values()), rtol=1e-10, atol=1e-10
    )


@pytest.mark.slow
def test_micro_batches_on_four_devices_make_the_step_of_the_whole_batch():
  one, four = _run("one", "four")
  _assert_same(one, four)
  # Two steps that move: another batch gives other weights.
  assert one["figures"][0]["loss"] != one["figures"][1]["loss"]
  # Examples stay where they are, and so does the network.
  assert four["kinds"] == []


@pytest.mark.slow
def test_so_they_do_in_a_bilevel_search_in_parts_and_by_shards():
  found = _run(
    "one", "four in parts", "four normed", "one bilevel", "four bilevel"
  )
  one, parts, normed, *bilevel = found
  _assert_same(one, parts)
  # Without batch norm its statistics by shard change nothing.
  _assert_same(one, normed)
  assert normed["kinds"] == []
  _assert_same(*bilevel)
  shards, accumulating, in_parts = _run(
    "four shards", "four shards accumulating", "four shards in parts"
  )
  _assert_same(shards, accumulating)
  _assert_same(shards, in_parts)


def _of_squares(params, rest, data):
  """A pass whose results are known: f = mean (w x)^2."""
  value, gradient = jax.value_and_grad(
    lambda w: jnp.mean((w * data["x"]) ** 2)
  )(params)
  after = {
    "mean": 0.9 * rest["mean"] + 0.1 * jnp.mean(data["x"]),
    "draws": rest["draws"] + 1,
  }
  return (value, ({"draws": rest["draws"]}, after)), gradient


def test_statistics_move_once_and_draws_go_on():
  x = np.arange(12.0, dtype=np.float32)
  rest = {"mean": jnp.float32(1.0), "draws": jnp.int32(5)}
  run = jax.jit(accumulation.accumulated(_of_squares, 3))
  (value, (figures, after)), gradient = run(jnp.float32(2.0), rest, {"x": x})
  np.testing.assert_allclose(value, np.mean((2 * x) ** 2), rtol=1e-6)
  np.testing.assert_allclose(gradient, np.mean(4 * x**2), rtol=1e-6)
  np.testing.assert_allclose(after["mean"], 0.9 + 0.1 * x.mean(), rtol=1e-6)
  # Each of the three had its own draws.
  assert int(after["draws"]) == 8
  assert float(figures["draws"]) == 6


def test_examples_are_dealt_in_turn():
  x = np.arange(12).reshape(6, 2)
  parts = accumulation.micro_batches({"x": jnp.asarray(x)}, 3)["x"]
  np.testing.assert_array_equal(parts, np.stack([x[i::3] for i in range(3)]))


def test_a_batch_that_does_not_divide_is_told_before_the_first_step(
  perceptron, tiny_batches
):
  with pytest.raises(
    ValueError, match="accumulate=0; expected a whole number >= 1"
  ):
    asga_jax.SearchSettings(accumulate=0)
  search = asga_jax.start_search(
    perceptron,
    budget="bops=3bit",
    settings=asga_jax.SearchSettings(steps=1, accumulate=3),
  )
  with pytest.raises(
    ValueError, match="batch_size=16 does not split into accumulate=3 parts"
  ):
    loop.run(search.step, search.state, tiny_batches, 1, search.mesh)
  mesh = sharding.data_mesh()
  sharding.check_batch_size(6, mesh, 3)
  with pytest.raises(ValueError, match="expected a positive multiple of 4"):
    sharding.check_batch_size(6, mesh, 4)
  with pytest.raises(ValueError, match="the same number of examples"):
    accumulation.micro_batches({"a": jnp.ones(6), "b": jnp.ones(4)}, 2)
  with pytest.raises(ValueError, match=r"a batch of 6 .* multiple of 4"):
    accumulation.micro_batches({"a": jnp.ones(6)}, 4)
