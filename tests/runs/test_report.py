"""Reading work directories, and where their pages go."""

import json
import shutil
import subprocess
import sys

import made_runs
import pytest

from asga_jax.runs import report, run_files


@pytest.fixture
def run(tmp_path):
  return made_runs.make_run(tmp_path / "run")


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"data": 3}, "data is 3; expected text"),
    ({"images": "many"}, "images is 'many'; expected a number"),
    ({"class_names": []}, r"class_names is \[\]; expected names"),
    ({"networks": {}}, r"networks is \{\}; expected an object"),
    ({"networks": {"a": {"top1": 1}}}, "network 'a' lacks one of the numbers"),
    (
      {
        "networks": {"a": {"top1": 1, "top5": 1, "loss": 0, "confusion": [[1]]}}
      },
      "confusion of network 'a' is not a matrix of 3 rows",
    ),
  ],
)
def test_an_evaluation_that_cannot_be_shown(tmp_path, changes, said):
  tuned = made_runs.make_tuning(tmp_path / "tuned")
  made_runs.make_evaluation(tuned, **changes)
  with pytest.raises(ValueError, match=rf"evaluation-test\.json: .*{said}"):
    report.write_report([tuned])
  assert not (tuned / "report.html").exists()


def test_a_comparison_goes_to_the_first_directory(tmp_path, run):
  other = made_runs.make_run(tmp_path / "other")
  assert report.write_report([run, other]) == run / "comparison.html"


def test_no_directory_and_the_same_twice(run):
  with pytest.raises(ValueError, match="workdirs="):
    report.write_report([])
  with pytest.raises(ValueError, match="given twice"):
    report.write_report([run, run / ".." / "run"])
  assert not (run / "comparison.html").exists()


@pytest.mark.parametrize(
  ("name", "text", "said"),
  [
    ("config.json", "{", r"config\.json cannot be read"),
    ("config.json", "[]", r"config\.json cannot be read"),
    ("config.json", "{}", r"config\.json: model is None; expected text"),
    ("summary.json", "{", r"summary\.json is damaged"),
    ("summary.json", "[1]", r"summary\.json is damaged .*no object"),
    ("summary.json", '{"a": "b"}', r"summary\.json: a is 'b'; expected a"),
    ("metrics.jsonl", "half\n", r"line 1 of .*metrics\.jsonl is no record"),
    ("metrics.jsonl", '{"step": 1, "gap": []}\n', r"step 1: gap is \[\]"),
    ("policy.json", "{", r"policy\.json: damaged or truncated"),
    ("pareto.json", "{", r"pareto\.json is damaged"),
    ("pareto.json", "{}", r"pareto\.json: schema_version is None"),
  ],
)
def test_a_damaged_file_is_named(run, name, text, said):
  (run / name).write_text(text)
  with pytest.raises(ValueError, match=said):
    report.write_report([run])
  assert not (run / "report.html").exists()


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("preset", "asam"),
    ("preset", ["asga"]),
    ("steps", "many"),
    ("sharpness", {"rho_max": 0}),
    ("sharpness", None),
  ],
)
def test_a_configuration_of_something_else(run, key, value):
  config = json.loads((run / "config.json").read_text())
  config["search"][key] = value
  (run / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=rf"config\.json: search\.{key}.*expect"):
    report.write_report([run])


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("unit", 3, "unit is 3; expected text"),
    ("points", {}, "points is not a list"),
    ("points", [{"cost": 1}], "points is not a list"),
    ("uniform", [{"cost": 1, "score": True}], "uniform is not a list"),
  ],
)
def test_a_curve_that_cannot_be_drawn(run, key, value, said):
  (run / "pareto.json").write_text(
    json.dumps({**made_runs.pareto(), key: value})
  )
  with pytest.raises(ValueError, match=said):
    report.write_report([run])


@pytest.mark.parametrize(
  ("preset", "sharpness", "kind"),
  [
    ("asga", {}, "adaptive"),
    ("sagm", {}, "fixed"),
    ("sgd", {"radius": None}, "fixed"),
    ("sam", {"radius": "growing"}, "growing"),
  ],
)
def test_the_kind_of_radius_is_that_of_the_method_unless_given(
  preset, sharpness, kind
):
  settings = {"preset": preset, "sharpness": sharpness}
  assert run_files.radius_kind(settings) == kind


def test_missing_directories_and_policies(tmp_path, run):
  with pytest.raises(ValueError, match=r"nowhere is no directory"):
    report.write_report([tmp_path / "nowhere"])
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(ValueError, match=r"config\.json cannot be read"):
    report.write_report([empty])
  (run / "policy.json").unlink()
  with pytest.raises(ValueError, match=r"policy\.json: cannot be read"):
    report.write_report([run])
  with pytest.raises(OSError, match="nowhere"):
    report.write_report(
      [made_runs.make_run(tmp_path / "good")],
      tmp_path / "nowhere" / "page.html",
    )


@pytest.mark.slow
def test_the_command_writes_a_page_or_one_line(run, tmp_path):
  def launch(*flags):
    return subprocess.run(
      [sys.executable, "launch/report.py", *flags],
      capture_output=True,
      text=True,
    )

  good = launch(f"--workdir={run}")
  assert good.returncode == 0, good.stderr
  assert good.stdout == f"written to {run / 'report.html'}\n"
  copy = tmp_path / "copy"
  shutil.copytree(run, copy)
  output = tmp_path / "both.html"
  both = launch(f"--workdir={run}", f"--workdir={copy}", f"--output={output}")
  assert both.returncode == 0, both.stderr
  assert made_runs.Page(output).table("layer")["layer"] == ["run", "copy"]
  bad = launch(f"--workdir={tmp_path / 'nowhere'}")
  assert bad.returncode == 1
  assert "nowhere is no directory" in bad.stderr
  assert "Traceback" not in bad.stderr
