"""The benchmarks run, on the smallest cases, and print what they say."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from asga_jax.xla import lowering

ROOT = pathlib.Path(__file__).parents[1]
# Beside it lie weights and images of ImageNet, where they are.
DATA = pathlib.Path(os.environ.get("ASGA_DATA_DIR") or "nowhere/tfds").parent


def _run(script, *arguments):
  command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
  done = subprocess.run(command, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.mark.slow
def test_steps(tmp_path):
  printed = _run(
    "steps.py",
    "--case=resnet20",
    "--row=ASGA search",
    "--row=ASGA, ascent previous",
    "--rounds=2",
    f"--output={tmp_path}",
  )
  found = json.loads((tmp_path / "steps.json").read_text())
  rows = found["cases"]["resnet20"]
  assert list(rows) == ["plain", "ASGA search", "ASGA, ascent previous"]
  assert rows["plain"]["time_ratio"] == rows["plain"]["memory_ratio"] == 1
  # Two passes and the mixtures are more work than one pass without.
  assert rows["ASGA search"]["gflop"] > 1.9 * rows["plain"]["gflop"]
  assert all(name in printed for name in rows)
  search = rows["ASGA search"]
  assert search["from_cache_s"] < search["compile_s"] / 2
  assert (tmp_path / "steps.png").stat().st_size > 10_000


@pytest.mark.slow
def test_steps_in_one_jit_equal_those_of_a_loop(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
  kinds = importlib.import_module("step_kinds")
  case = kinds.Case("resnet8", "small", 32, 4)
  settings = (case, lowering.conv_general_dilated)
  one, many = kinds.searched(*settings), kinds.scanned(*settings, steps=3)
  state, losses = one.state, []
  for _ in range(3):
    state, figures = one.function(state, *one.batches)
    losses.append(float(figures["loss"]))
  # With the options of a step: codes at the edge of rounding turn otherwise.
  compiled = many.function.lower(many.state, *many.batches).compile(
    compiler_options=lowering.compiler_options()
  )
  _, figures = compiled(many.state, *many.batches)
  np.testing.assert_allclose(figures["loss"], losses, rtol=1e-5)


@pytest.mark.slow
def test_wall(tmp_path):
  printed = _run(
    "wall.py",
    f"--config={ROOT / 'configs' / 'resnet8.py'}",
    "--rounds=1",
    "--steps=10",
    f"--output={tmp_path}",
  )
  found = json.loads((tmp_path / "wall.json").read_text())
  cold, warm = found["cold"], found["warm"]
  assert 0 < cold["trace"] + cold["compile"] < cold["first_step"]
  # The second run finds the step in the cache.
  assert warm["compile"] < cold["compile"] / 2
  assert warm["first_step"] < warm["last_step"] < warm["end"]
  assert "outside the step, of the whole run" in printed
  (loop,) = found["loops"]
  assert loop["the compiled step"] > sum(loop.values()) / 2
  # The parts of a whole search do not overlap, and leave little untold.
  whole = found["whole"]
  assert whole["the rest"] < sum(whole.values()) / 10
  for parts in (loop, whole):
    assert all(seconds >= 0 for seconds in parts.values())


@pytest.mark.slow
def test_agreement(tmp_path):
  printed = _run(
    "agreement.py",
    "--network=resnet8",
    "--float_steps=60",
    "--search_steps=10",
    "--steps=20",
    f"--output={tmp_path}",
  )
  found = json.loads((tmp_path / "agreement.json").read_text())
  rows = found["networks"]["resnet8"]
  assert list(rows) == ["float", "8 bits", "mixed"]
  for name, row in rows.items():
    assert f"resnet8, {name}" in printed
    assert row["images"] == 2000
    assert row["onnxruntime_same"] >= 0.99
    assert row["onnxruntime_top1"] == pytest.approx(row["top1"], abs=0.005)
    assert [len(row["ms"][size]) for size in ("1", "32")] == [200, 30]
  for name in ("8 bits", "mixed"):
    row = rows[name]
    assert row["reference_same"] >= 0.99
    for kind, most in {"packed": 0.02, "stored": 0.05}.items():
      promised = row[f"promised_{kind}_weight_bytes"]
      assert row[f"{kind}_weight_bytes"] == pytest.approx(promised, rel=most)
  assert rows["8 bits"]["kernels"]["QLinearConv"] > 0


@pytest.mark.slow
def test_allocation():
  printed = _run("allocation.py", "--seeds=1", "--points=3").splitlines()
  assert printed[0].startswith("ResNet-50, 54 layers, 6x6 choices a layer")
  rows = [line for line in printed[2:] if line.startswith(("free", "tied"))]
  assert len(rows) == 2 * 3 * 3 + 2
  for row in rows:
    # The curve's rows are of several allocations.
    assert 0 < float(row.split()[-1]) < (10 if "curve" in row else 2), row


def test_agreement_counts_tensors(monkeypatch, script_flags):
  monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
  import ascents

  left = {"a": [2, 3], "b": [4, 8]}
  assert ascents.agreement(left, left) == 100
  assert ascents.agreement(left, {"a": [2, 4], "b": [8, 4]}) == 25


@pytest.mark.slow
def test_mixture():
  printed = _run("mixture.py", "--size=4x8x8x16", "--rounds=3").splitlines()
  assert printed[0].startswith("4x8x8x16 float32 on ")
  rows = {int(line.split()[0]): line.split()[1:] for line in printed[2:]}
  assert list(rows) == [1, 2, 6, 8, 12]
  for cells in rows.values():
    # Forward and backward; the kernel is for larger tensors on GPUs.
    assert len(cells) == 4
    assert all(float(cell) > 0 for cell in cells[::2])


def test_imagenet_says_what_is_missing(tmp_path):
  command = [sys.executable, str(ROOT / "benchmarks" / "imagenet.py")]
  done = subprocess.run(
    [*command, f"--data={tmp_path}"], capture_output=True, text=True
  )
  assert done.returncode == 1
  last = done.stderr.splitlines()[-1]
  assert f"there is no {tmp_path / 'weights'}" in last


# Top-1 in float that others measured with these weights on these images in
# onnxruntime, and what 8 bits may cost; of the ten classes of dogs and of 1,300
# images of ImageNet, of CIFAR-10 as it was recompressed there.
@pytest.mark.slow
@pytest.mark.skipif(
  not (DATA / "imagenet" / "val.csv").exists(),
  reason=f"no imagenet/val.csv beside ASGA_DATA_DIR ({DATA})",
)
@pytest.mark.parametrize(
  ("network", "top1", "most"),
  [
    ("EfficientNet-Lite0", {"woof500": 75.2, "mixed227": 83.2}, 1.0),
    ("MobileNetV2", {"woof500": 71.6, "mixed227": 79.4}, 0.5),
    ("ResNet-18", {"woof500": 67.6, "mixed227": 75.5}, 1.0),
    ("ResNet-20", {"cifar10": 81.0}, None),
    ("ResNet-56", {"cifar10": 83.2}, None),
  ],
)
def test_imagenet(network, top1, most, tmp_path):
  printed = _run(
    "imagenet.py",
    f"--data={DATA}",
    f"--network={network}",
    "--part=woof500",
    "--part=mixed227",
    f"--output={tmp_path}",
  )
  found = json.loads((tmp_path / "imagenet.json").read_text())
  for part, expected in top1.items():
    row = found["float"][network][part]
    assert f"{network}, {part}" in printed
    assert 100 * row["top1"] == pytest.approx(expected, abs=0.3)
  if most is not None:
    row = found["8 bits"][network]
    in_jax, in_onnx = 100 * row["jax"]["top1"], 100 * row["onnx"]["top1"]
    assert 100 * row["float"]["top1"] - in_jax <= most
    # As close as JAX is to itself after a millionth, less two images of 500.
    least = min(each["same"] for each in row["moved"])
    assert row["same"] >= least - 0.006
    assert in_onnx == pytest.approx(in_jax, abs=1.0)


def test_networks_are_compared_on_the_same_images(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
  comparison = importlib.import_module("comparison")
  labels = {"a": np.zeros(60, int), "b": np.zeros(40, int)}

  def right(shares):
    return {
      part: np.where(
        np.arange(len(truth))[:, None] < shares[part], [2.0, 0.0], [0.0, 2.0]
      )
      for part, truth in labels.items()
    }

  found = comparison.compare(
    labels,
    right({"a": 60, "b": 40}),
    right({"a": 30, "b": 20}),
    right({"a": 45, "b": 40}),
  )
  assert found["a"]["top1"] == [1.0, 0.5, 0.75]
  assert found["a"]["agreement"] == found["a"]["top1"]
  assert found["all"]["top1"] == pytest.approx([1.0, 0.5, 0.85])
  value, low, high = found["all"]["gain"]
  assert value == pytest.approx(0.35)
  assert 0 < low < value < high
  # Of images that are wrong: 2 nats apart times the difference of chances.
  wrong = 2 * np.tanh(1)
  assert found["b"]["divergence"] == pytest.approx([0, wrong / 2, 0])
  assert found["b"]["divergence_saved"][0] == pytest.approx(wrong / 2)
  table = comparison.format_rows({"Net": {"bops=4bit": found}})
  assert "35.00 (" in table
  assert table.count("\n") == 4


def test_seeds_are_compared_pairwise(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
  seeds = importlib.import_module("seeds")

  def rows(*top1):
    return [{"top1": x, "train_top1": x, "budget_used": 99.0} for x in top1]

  table = seeds.format_table(
    "trained", {"uniform": rows(80, 84, 82), "prior": rows(81, 86, 85)}
  ).splitlines()
  # Gains of 1, 2 and 3: twice 4.303 (Student, two degrees) / sqrt(3) wide.
  assert "2.00 (-0.48 to 4.48)" in table[2]
  assert table[2].split()[:2] == ["prior", "84.00"]
  assert table[1].split()[2] == "-"


def test_tables_keep_figures_as_they_are_given(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
  terminal = importlib.import_module("terminal")
  rows = [{"": "long name", **terminal.spread("gain", [1.0, 3.0, 2.0], "+")}]
  rows.append({"": "one", **terminal.spread("gain", [-0.5], "+")})
  assert terminal.table(rows).splitlines()[1:] == [
    "long name  +2.00 ± 1.00  +1.00  +3.00",
    "one        -0.50 ± 0.00  -0.50  -0.50",
  ]


def test_tpu_plan_bounds_a_step_by_each_peak(tmp_path):
  found = {
    "arguments": 1e9,
    "temporary": 2e9,
    "peak": 3e9,
    "code": 5e8,
    "flops": 197e12 / 2,  # half a second of products
    "accessed": 819e9 / 4,
    # A ring of four sends 2 * 3/4 of what it sums up.
    "collectives": {"all-reduce": 200e9 / 1.5 / 8},
    "fits": True,
  }
  cells = {
    "imagenet_resnet18_4_4096": {"needs": 33.5e9, "fits": False},
    "imagenet_resnet18_4_1024": found,
  }
  for name, cell in cells.items():
    (tmp_path / f"{name}.json").write_text(json.dumps(cell))
  printed = _run(
    "tpu_plan.py",
    "--kept",
    "--model=resnet18",
    "--chips=4,16",
    "--price=2",
    f"--output={tmp_path}",
  )
  _, first, second = printed.strip().splitlines()
  assert first.endswith("33.5, too much")
  # 1,281,167 images, 1,024 in half a second: 625.6 s of four chips.
  for text in ("3.50", "98.50", "500.0 / 250.0 / 125.0", "10.4", "1.39"):
    assert f" {text}" in second
  assert second.split()[:4] == ["imagenet", "resnet18", "4", "1024"]


@pytest.mark.slow
@pytest.mark.skipif(
  not (DATA / "imagenet/val.csv").is_file(),
  reason=f"no imagenet/val.csv in {DATA}, beside ASGA_DATA_DIR",
)
def test_input():
  printed = _run(
    "input.py",
    f"--data={DATA / 'imagenet'}",
    "--images=40",
    "--batches=3",
    "--steps=1",
    "--workers=0",
  )
  assert printed.startswith("45 files of 500 x 375 (or upright), enlarged from")
  reading, searching = printed.split("search of resnet8")
  cells = reading.splitlines()[-2].split("|")[2:5]
  assert all(float(cell) > 0 for cell in cells)
  shares = searching.splitlines()[-1].split("|")
  assert 0 <= float(shares[4].strip(" %")) <= 100
