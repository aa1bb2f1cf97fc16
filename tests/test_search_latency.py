"""A search under a latency budget: from its table to exports, and refused."""

import itertools
import os
import pathlib
import subprocess
import sys
from unittest import mock

import pytest
from flax import nnx

import asga_jax
from asga_jax import models
from asga_jax.cost import latency_table, macs
from asga_jax.runs import build, read, recorded_loop
from asga_jax.runs import search as search_run

ROOT = pathlib.Path(__file__).parents[1]
BITS = (2, 4, 8, 32)
# Its fixture is a search with a table that is measured.
pytestmark = pytest.mark.slow


class Tiny(nnx.Module):
  """Three linear layers: 8x8x3 to 10 classes."""

  def __init__(self, num_classes, *, stem, rngs, conv_general_dilated=None):
    del stem, conv_general_dilated
    self.first = nnx.Linear(192, 4, rngs=rngs)
    self.middle = nnx.Linear(4, 5, rngs=rngs)
    self.head = nnx.Linear(5, num_classes, rngs=rngs)

  def __call__(self, images):
    hidden = nnx.relu(self.first(images.reshape(len(images), -1)))
    return self.head(nnx.relu(self.middle(hidden)))


@pytest.fixture(scope="module", autouse=True)
def tiny_model():
  """Adds the tiny network to those that a configuration may name."""
  known = {**models.CONSTRUCTORS, "tiny": Tiny}
  with mock.patch.object(models, "CONSTRUCTORS", known):
    yield


def _entries(scale=1.0):
  return {
    (path, bw, ba): scale * (0.25 * bw + 0.125 * ba)
    for path in ("first", "middle", "head")
    for bw, ba in itertools.product(BITS, repeat=2)
  }


@pytest.fixture(scope="session")
def make_config(make_tiny):
  """A function that makes the configuration of a search with a table."""

  def make(table, budget):
    config = make_tiny()
    config.batch_norm_batches = 0
    config.bits = (2, 4, 8)
    config.search.steps = 2
    config.budget = budget
    config.latency_table = str(table)
    return config

  return make


@pytest.fixture(scope="module")
def searched(tmp_path_factory, make_config):
  """A finished search under two budgets, its configuration and its table."""
  folder = tmp_path_factory.mktemp("latency")
  table = folder / "table.csv"
  latency_table.save(latency_table.LatencyTable(_entries()), table)
  # The ends have 8 bits, 3 ms each; 4 bits cost 1.5 ms.
  config = make_config(table, "latency=7.5ms,bops=8bit")
  found = search_run.run_search(config, folder / "run")
  return folder, config, found


def _latency(policy):
  entries = _entries()
  return sum(
    entries[path, layer.weight_bits, layer.activation_bits]
    for path, layer in policy.layers.items()
  )


def test_a_search_keeps_to_a_latency(searched):
  _, _, found = searched
  assert found.policy.budget == "latency=7.5ms,bops=8bit"
  assert found.policy.cost["latency"] == _latency(found.policy)
  # The dearest that fits: 4 bits of each, or 2 and 8.
  assert found.policy.cost["latency"] == 7.5


def _export(folder, *arguments):
  code = (
    "import sys\n"
    "sys.path[:0] = ['launch', 'tests']\n"
    "from asga_jax import models\n"
    "import test_search_latency\n"
    "models.CONSTRUCTORS['tiny'] = test_search_latency.Tiny\n"
    "import export\n"
    "export.app.run(export.main)\n"
  )
  return subprocess.run(
    [sys.executable, "-c", code, f"--workdir={folder / 'run'}", *arguments],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_finished_search_serves_other_latencies_without_its_table(searched):
  folder, _, _ = searched
  moved = folder / "moved.csv"
  (folder / "table.csv").rename(moved)
  try:
    result = read.read_search(folder / "run")
    for budget in ("latency=7ms", "latency=4bit", "latency=20%,bops=4bit"):
      policy = asga_jax.allocate(result, budget=budget)
      assert policy.cost["latency"] == _latency(policy)
      assert 0.9 < policy.cost["budget_used"] <= 1
    with pytest.raises(ValueError, match=r"latency <= 5 ms \(lowest .* 6.75"):
      asga_jax.allocate(result, budget="latency=5ms")
  finally:
    moved.rename(folder / "table.csv")


@pytest.mark.slow
def test_an_export_takes_another_table(searched, tmp_path):
  folder, _, _ = searched
  table = tmp_path / "slow.json"
  latency_table.save(latency_table.LatencyTable(_entries(10)), table)
  output = tmp_path / "policy.json"
  flags = (f"--output={output}", f"--latency_table={table}")
  done = _export(folder, "--budget=latency=70ms", *flags)
  assert done.returncode == 0, done.stderr
  policy = asga_jax.load_policy(output)
  assert policy.cost["latency"] == 10 * _latency(policy)
  table.write_text("{")
  refused = _export(folder, "--budget=latency=70ms", *flags)
  assert refused.returncode == 1
  assert "slow.json: damaged or truncated" in refused.stderr
  assert "Traceback" not in refused.stderr


def test_a_table_that_changed_is_told_on_going_on(searched, tmp_path):
  folder, config, _ = searched
  cut = tmp_path / "cut"
  cut.mkdir()
  (cut / "config.json").write_bytes(
    (folder / "run" / "config.json").read_bytes()
  )
  changed = latency_table.LatencyTable(_entries(2))
  latency_table.save(changed, cut / "latency_table.csv")
  with pytest.raises(ValueError, match=r"table\.csv is not the latency table"):
    search_run.run_search(config, cut)


def _broken(name):
  entries = _entries()
  if name == "unknown":
    entries["tail", 8, 8] = 1.0
  else:
    del entries["middle", 4, 2]
  return entries


@pytest.mark.parametrize(
  ("name", "named"),
  [
    ("unknown", "layers that the deployed network lacks: 'tail'"),
    ("missing", r"lacks entries .*\('middle', 4, 2\)"),
    ("nowhere", r"nowhere\.json: cannot be read as a latency table"),
    ("none", r"'latency=4bit'.*--config\.latency_table=FILE.*load_latency"),
  ],
)
def test_a_bad_table_is_told_before_anything_is_searched(
  tmp_path, make_config, name, named
):
  table = tmp_path / f"{name}.json"
  if name in ("unknown", "missing"):
    latency_table.save(latency_table.LatencyTable(_broken(name)), table)
  config = make_config("" if name == "none" else table, "latency=4bit")
  early = name in ("nowhere", "none")
  with (
    mock.patch.object(recorded_loop, "train", side_effect=AssertionError),
    mock.patch.object(
      search_run.data_lib,
      "load",
      side_effect=AssertionError if early else search_run.data_lib.load,
    ),
    pytest.raises(ValueError, match=named),
  ):
    search_run.run_search(config, tmp_path / "run")
  assert not (tmp_path / "run" / "config.json").exists()


def test_a_table_is_of_the_deployed_network(make_config):
  config = make_config("", "bops=4bit")
  network = macs.network_stats(*build.make_deployed(config))
  assert network.paths == ("first", "middle", "head")


def test_candidate_bits_are_those_of_all_rules(make_config):
  config = make_config("", "bops=4bit")
  config.rules = (
    {"pattern": "middle", "weight_bits": [3, 5], "activation_bits": 32},
    {"pattern": "first"},
  )
  assert build.candidate_bits(config) == (2, 3, 4, 5, 8, 32)
