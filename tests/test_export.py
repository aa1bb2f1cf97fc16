"""launch/export.py: what it writes and prints, and flags that do not fit."""

import importlib.util
import json
import pathlib

import pytest
import test_pareto as cases
from absl import flags
from absl.testing import flagsaver

import asga_jax
from asga_jax import search_run

SCRIPT = pathlib.Path(__file__).parents[1] / "launch" / "export.py"


@pytest.fixture(scope="module")
def export(script_flags):
  """The script."""
  spec = importlib.util.spec_from_file_location("export_script", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def start(export, tmp_path, monkeypatch):
  """A function that runs the script on a result that needs no search."""
  result = cases.draw_case(2)[0]
  monkeypatch.setattr(search_run, "restore", lambda path: result)

  def run(*arguments):
    with flagsaver.flagsaver():
      left = flags.FLAGS(["export", f"--workdir={tmp_path}", *arguments])
      export.main(left)
    return result

  return run


def test_the_curve_and_its_picture(start, tmp_path, capsys):
  result = start("--pareto")
  curve = asga_jax.load_pareto(tmp_path / "pareto.json")
  assert curve == asga_jax.pareto(result)
  assert (tmp_path / "pareto.png").stat().st_size > 10_000
  printed = capsys.readouterr().out
  assert f"{len(curve.points)} points (the whole curve)" in printed
  assert "uniform" in printed
  assert "pareto.png" in printed


def test_another_cost_score_and_budget_are_in_the_name(start, tmp_path):
  start(
    "--pareto",
    "--cost=size",
    "--score=log_prob",
    "--budget=bops<=8bits",
    "--points=3",
  )
  name = "pareto-size-bops=8bit-log_prob"
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    f"{name}.json",
    f"{name}.png",
  ]
  raw = json.loads((tmp_path / f"{name}.json").read_text())
  assert (raw["cost"], raw["score"], raw["budget"]) == (
    "size",
    "log_prob",
    "bops=8bit",
  )
  assert len(raw["points"]) <= 3


def test_an_output_names_both_files(start, tmp_path):
  start("--pareto", f"--output={tmp_path / 'curve.json'}")
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ["curve.json", "curve.png"]


def test_without_pareto_it_writes_the_policy(start, tmp_path):
  result = start("--budget=bops=5bit")
  written = asga_jax.load_policy(tmp_path / "policy-bops=5bit.json")
  assert written == asga_jax.allocate(result, budget="bops=5bit")


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    (["--cost=size"], "--cost=size"),
    (["--points=3"], "--points=3"),
    (["--pareto", "--format=policy"], "--format=policy and --pareto"),
    (["--pareto", "--output=curve.png"], "--output=curve.png"),
    (["--pareto", "--cost=watts"], "cost='watts'"),
    (["--pareto", "--points=1"], "points=1"),
    (["--pareto", "--budget=size=1B"], "lowest reachable"),
  ],
)
def test_bad_flags_end_in_one_line_and_write_nothing(
  start, tmp_path, arguments, named, caplog
):
  with pytest.raises(SystemExit) as caught:
    start(*arguments)
  assert caught.value.code == 1
  assert named in caplog.text
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["onnx", "stablehlo", "orbax"])
def test_an_unwritable_network_is_found_before_the_search_is_read(
  export, tmp_path, monkeypatch, caplog, kind
):
  def restore(path):
    raise AssertionError("read")

  monkeypatch.setattr(search_run, "restore", restore)
  output = tmp_path / "missing" / "network"
  arguments = [f"--workdir={tmp_path}", f"--format={kind}"]
  with flagsaver.flagsaver():
    left = flags.FLAGS(["export", *arguments, f"--output={output}"])
    with pytest.raises(SystemExit) as caught:
      export.main(left)
  assert caught.value.code == 1
  assert "missing" in caplog.text
  assert list(tmp_path.iterdir()) == []
