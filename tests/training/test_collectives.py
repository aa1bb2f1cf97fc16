"""What travels between devices in the compiled step of a search."""

import fake_devices
import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
import asga_jax
from asga_jax.training import sharding

class Network(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Conv(8, 24, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(24, rngs=rngs)
    self.second = nnx.Conv(24, 40, (3, 3), rngs=rngs)
    self.head = nnx.Linear(40, 3, rngs=rngs)
  def __call__(self, x):
    x = nnx.relu(self.norm(self.first(x)))
    return self.head(nnx.relu(self.second(x)).mean(axis=(1, 2)))

size = int(sys.argv[1])
image = np.random.default_rng(0).normal(size=(16, size, size, 8))
batch = {"image": image.astype(np.float32), "label": np.zeros(16, np.int32)}
model = asga_jax.searchable(Network(nnx.Rngs(0)), batch["image"])
search = asga_jax.start_search(
  model, budget="bops=4bit",
  settings=asga_jax.SearchSettings(steps=10, preset=sys.argv[2]),
  mesh=sharding.data_mesh())
placed = sharding.place_batch(batch, search.mesh)
text = search.step.lower(search.state, placed).compile().as_text()
found = {}
for shapes, kind in re.findall(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|"
    r"reduce-scatter)(?:-start)?\\(", text):
  for dims in re.findall(r"[a-z]\\d+\\[([\\d,]*)\\]", shapes):
    numbers = [int(x) for x in dims.split(",") if x]
    found[kind] = found.get(kind, 0) + int(np.prod(numbers))
weights = sum(x.size for x in jax.tree.leaves(search.state.params.weights))
json.dump({"found": found, "weights": weights}, sys.stdout)
"""


def _step(size, preset):
  """Gives numbers that travel, by kind, and how many weights there are."""
  return fake_devices.run(SCRIPT, str(size), preset, devices=8)


@pytest.mark.parametrize(("preset", "passes"), [("sgd", 1), ("asga", 2)])
def test_gradients_alone_grow_with_the_weights(preset, passes):
  step = _step(8, preset)
  assert set(step["found"]) == {"all-reduce"}
  # Beside them statistics of norms, step sizes, slopes and sums.
  beside = step["found"]["all-reduce"] - passes * step["weights"]
  assert 0 < beside < 0.2 * passes * step["weights"]


def test_nothing_grows_with_activations():
  small, large = _step(8, "asga"), _step(16, "asga")
  assert small["found"] == large["found"]
