"""Latencies of layers: a table of every pair of bits, and the command."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import onnxruntime
import pytest
from flax import nnx

from asga_jax import policy as policy_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import latency_table, macs
from asga_jax.deploy import layer_timing
from asga_jax.deploy.onnx import layer as onnx_layer
from asga_jax.runs import latency
from asga_jax.training import progress

ROOT = pathlib.Path(__file__).parents[2]


class Small(nnx.Module):
  """A convolution, one that is called twice, and a linear layer."""

  def __init__(self, rngs):
    self.stem = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
    self.twice = nnx.Conv(16, 16, (3, 3), rngs=rngs)
    self.alike = nnx.Conv(16, 16, (3, 3), rngs=rngs)
    self.head = nnx.Linear(16, 10, rngs=rngs)

  def __call__(self, x):
    x = self.twice(self.twice(self.stem(x)))
    return self.head(self.alike(x).mean(axis=(1, 2)))


@pytest.fixture(scope="module")
def small():
  return nnx.eval_shape(lambda: Small(nnx.Rngs(0)))


def test_every_layer_and_pair_has_an_entry(small, tmp_path, capsys):
  bits = (2, 3, 5, 8, 32)
  pairs = list(itertools.product(bits, repeat=2))
  table = layer_timing.measure(
    small,
    (16, 16, 3),
    pairs,
    model_name="small",
    repeats=3,
    watch=lambda each: progress.watched(each, label="latency"),
  )
  paths = ("stem", "twice", "alike", "head")
  assert set(table.entries) == {
    (path, *pair) for path in paths for pair in pairs
  }
  assert all(0 < ms < 1000 for ms in table.entries.values())
  for path in paths:
    integer = {table.entries[path, *pair] for pair in pairs if 32 not in pair}
    assert len(integer) == 1
    for pair in pairs:
      once = table.entries["alike", *pair]
      assert table.entries["twice", *pair] == once + once
  assert "latency step 3 of 3" in capsys.readouterr().err
  for words in ("QLinearConv (integer", "QLinearMatMul (int", "Conv (float"):
    assert words in table.how
  assert onnxruntime.__version__ in table.how
  latency_table.save(table, tmp_path / "table.json")
  assert latency_table.load(tmp_path / "table.json") == table
  network = macs.network_stats(small, (16, 16, 3))
  choice = policy_lib.LayerChoice((2, 8), (3, 5), searched=True)
  choices = dict.fromkeys(network.paths, choice)
  cost = latency_table.latency_cost(table.entries)
  assert costs_lib.float_cost(network, cost) > 0
  cost.check(network, choices)
  assert table.model == "small"


def test_totals_are_sums_over_the_layers():
  entries = {
    ("a", 8, 8): 0.25,
    ("b", 8, 8): 0.5,
    ("a", 32, 32): 1.0,
    ("b", 32, 32): 2.0,
    ("b", 8, 32): 9.0,
  }
  table = latency_table.LatencyTable(entries, model="two", how="by hand")
  assert latency.format_totals(table).splitlines() == [
    "latency of two, its layers summed:",
    "  8/8 bits  0.7500 ms",
    "32/32 bits  3.0000 ms",
    "by hand",
  ]


def test_a_batch_is_in_the_products(small):
  products = layer_timing.find_products(small, (16, 16, 3), batch=4)
  assert products["stem"][0].input_shape == (4, 3, 16, 16)
  assert len(products["twice"]) == 2
  assert products["head"] == (onnx_layer.Product((4, 16), (16, 10)),)


def test_layers_that_cannot_be_built_are_named():
  class Other(nnx.Module):
    def __init__(self, layer):
      self.inner = layer

    def __call__(self, x):
      return self.inner(x)

  for layer, named in (
    (
      nnx.ConvTranspose(3, 4, (2, 2), strides=2, rngs=nnx.Rngs(0)),
      "'inner' dilates its input",
    ),
    (
      nnx.Conv(3, 4, (2, 2), padding=1, input_dilation=2, rngs=nnx.Rngs(0)),
      r"'inner' dilates its input by \(2, 2\)",
    ),
  ):
    with pytest.raises(ValueError, match=named):
      layer_timing.find_products(Other(layer), (8, 8, 3))


@pytest.mark.parametrize("name", ["batch", "threads", "repeats"])
def test_bad_numbers_are_named(small, name):
  with pytest.raises(ValueError, match=f"{name} = 0: expected at least 1"):
    layer_timing.measure(small, (16, 16, 3), [(8, 8)], **{name: 0})


@pytest.mark.parametrize("name", ["table.txt", "nowhere/table.json", "d.json"])
def test_an_output_that_cannot_be_written_is_told_first(tmp_path, name):
  (tmp_path / "d.json").mkdir()
  with pytest.raises(latency_table.LatencyTableError, match=r"table|d\.json"):
    latency_table.check_output(tmp_path / name)
  latency_table.check_output(tmp_path / "table.csv")


@pytest.mark.slow
def test_the_command_writes_a_table_that_a_search_accepts(tmp_path):
  def run(output):
    return subprocess.run(
      [
        sys.executable,
        "launch/latency.py",
        "--config=configs/resnet8.py",
        "--config.bits=(4,8)",
        "--repeats=1",
        f"--output={output}",
      ],
      cwd=ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      capture_output=True,
      text=True,
      check=False,
    )

  file = tmp_path / "table.json"
  done = run(file)
  assert done.returncode == 0, done.stderr
  assert "4/4 bits" in done.stdout
  raw = json.loads(file.read_text())
  assert raw["model"] == "resnet8 at 32x32x3"
  bits = {(e["weight_bits"], e["activation_bits"]) for e in raw["entries"]}
  assert bits == {(4, 4), (4, 8), (8, 4), (8, 8), (32, 32)}
  refused = run(tmp_path / "nowhere" / "table.json")
  assert refused.returncode == 1
  assert "nowhere" in refused.stderr
  assert "Traceback" not in refused.stderr
