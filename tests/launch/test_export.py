"""launch/export.py: what it writes and prints, and flags that do not fit."""

import importlib.util
import json
import pathlib
import re

import pytest
import test_pareto as cases
from absl import flags
from absl.testing import flagsaver

import asga_jax
from asga_jax.deploy import formats as export_formats
from asga_jax.runs import data as run_data
from asga_jax.runs import export as export_run
from asga_jax.runs import measure, read
from asga_jax.runs import search as search_run

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "export.py"


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
  monkeypatch.setattr(read, "read_search", lambda path: result)
  monkeypatch.setattr(read, "is_search", lambda path: True)

  def run(*arguments):
    with flagsaver.flagsaver():
      left = flags.FLAGS(["export", f"--workdir={tmp_path}", *arguments])
      export.main(left)
    return result

  return run


def test_the_curve_and_its_picture(start, tmp_path, capsys):
  result = start("--pareto")
  curve = asga_jax.load_pareto(tmp_path / "pareto-bops.json")
  assert curve == asga_jax.pareto(result)
  assert (tmp_path / "pareto-bops.png").stat().st_size > 10_000
  printed = capsys.readouterr().out
  assert f"{len(curve.points)} points (the whole curve)" in printed
  assert "uniform" in printed
  assert "pareto-bops.png" in printed


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
    (["--format=onnx", "--averaged"], "averaged=True is of a fine-tuning"),
    (["--repeats=3"], "--repeats=3 is of a network"),
    (["--pareto", "--noreport"], "--report=False is of a network"),
    (["--format=onnx", "--batches=-1"], "--batches=-1; expected at least 0"),
    (
      ["--format=onnx", "--noreport", "--batches=1"],
      "--batches=1 is of the report",
    ),
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


@pytest.mark.parametrize("kind", export_formats.FORMATS)
def test_an_unwritable_network_is_found_before_the_search_is_read(
  export, tmp_path, monkeypatch, caplog, kind
):
  def restore(path):
    raise AssertionError("read")

  monkeypatch.setattr(read, "read_search", restore)
  monkeypatch.setattr(read, "is_search", lambda path: True)
  suffix = export_formats.FORMATS[kind].suffix
  output = tmp_path / "missing" / f"network{suffix}"
  arguments = [f"--workdir={tmp_path}", f"--format={kind}"]
  with flagsaver.flagsaver():
    left = flags.FLAGS(["export", *arguments, f"--output={output}"])
    with pytest.raises(SystemExit) as caught:
      export.main(left)
  assert caught.value.code == 1
  assert "missing" in caplog.text
  assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tuned(export, tmp_path, monkeypatch):
  """A function that runs the script on a fine-tuning that needs no training."""
  config = search_run.ml_collections.ConfigDict(
    {"model": "tiny", "data": {"image_size": 8}}
  )
  found = read.TrainedRun(
    config, 0, asga_jax.allocate(cases.draw_case(2)[0]), "net", "net", "average"
  )
  monkeypatch.setattr(read, "is_search", lambda path: False)
  said = []

  def run(*arguments, **changes):
    trained = found._replace(**changes)
    monkeypatch.setattr(read, "read_trained", lambda path: trained)
    monkeypatch.setattr(
      export_run,
      "write_network",
      lambda network, name, path: said.append((network, name, path)) or name,
    )
    with flagsaver.flagsaver():
      left = flags.FLAGS(["export", f"--workdir={tmp_path}", *arguments])
      export.main(left)
    return said

  return run


def test_a_fine_tuned_network_goes_to_several_formats(tuned, tmp_path, capsys):
  folder = tmp_path / "new" / "files"
  said = tuned(
    "--format=policy",
    "--format=onnx",
    "--format=packed",
    "--averaged",
    "--noreport",
    f"--output={folder}",
  )
  assert [(name, path.name) for _, name, path in said] == [
    ("onnx", "network-averaged.onnx"),
    ("packed", "network-averaged.safetensors"),
  ]
  for network, _, path in said:
    assert path.parent == folder
    assert network.model == "average"
    assert network.input_shape == (8, 8, 3)
  assert asga_jax.load_policy(folder / "policy.json") == said[0][0].policy
  assert "policy.json" in capsys.readouterr().out


def test_the_report_is_written_beside_the_first_file(
  tuned, tmp_path, monkeypatch, capsys
):
  row = {"name": "float ONNX", "runtime": "onnxruntime", "top1": 0.5}
  row |= dict.fromkeys(("file_bytes", "stored_bytes", "promised_bytes"), 2000)
  report = {
    "model": "tiny",
    "data": "digits",
    "split": "test",
    "images": 7,
    "how": "timed",
    "rows": [{**row, "same": None, "latency_ms": {"1": 1.0, "32": 3.0}}],
  }
  seen = {}

  def measure_nothing(network, written, data, **numbers):
    seen.update(numbers, data=data, written=written)
    return report

  monkeypatch.setattr(measure, "measure_files", measure_nothing)
  monkeypatch.setattr(run_data, "of_run", lambda path: "its data")
  tuned("--format=stablehlo", "--batches=2", "--repeats=4")
  assert seen == {
    "batches": 2,
    "repeats": 4,
    "data": "its data",
    "written": {"stablehlo": tmp_path / "network.stablehlo"},
  }
  written = json.loads((tmp_path / "network-report.json").read_text())
  assert written == report
  assert (tmp_path / "network-report.png").stat().st_size > 5000
  assert "tiny on digits, test, 7 images" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("arguments", "changes", "named"),
  [
    *(
      (["--format=onnx", flag], {}, f"{flag[2:]} is of a search")
      for flag in (
        "--budget=bops=3bit",
        "--score=log_prob",
        "--latency_table=table.json",
      )
    ),
    (["--pareto", "--cost=size"], {}, "pareto=True is of a search"),
    (["--format=policy"], {"policy": None}, "format=policy: .*float network"),
    (["--format=packed"], {"policy": None}, "format=packed: .*float network"),
    (
      ["--format=onnx", "--averaged", "--noreport"],
      {"averaged": None},
      "kept no average",
    ),
  ],
)
def test_what_a_fine_tuning_has_not(
  tuned, tmp_path, arguments, changes, named, caplog
):
  with pytest.raises(SystemExit) as caught:
    tuned(*arguments, **changes)
  assert caught.value.code == 1
  assert re.search(named, caplog.text)
  assert list(tmp_path.iterdir()) == []
