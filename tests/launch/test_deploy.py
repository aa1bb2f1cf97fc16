"""launch/deploy.py: which commands it runs, and what ends it."""

import importlib.util
import pathlib
import subprocess
import sys
import types

import pytest
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"{ROOT / 'configs' / 'resnet8.py'}:small"


@pytest.fixture(scope="module")
def script(script_flags):
  path = ROOT / "launch" / "deploy.py"
  spec = importlib.util.spec_from_file_location("deploy_script", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def start(script, monkeypatch):
  """A function that runs the script; its commands end with these codes."""

  def run(*arguments, codes=(0, 0, 0, 0)):
    left, given = list(codes), []

    def end(command):
      given.append(command)
      return types.SimpleNamespace(returncode=left.pop(0))

    monkeypatch.setattr(script.subprocess, "run", end)
    with flagsaver.flagsaver():
      try:
        script.main(script.parse(["deploy", *arguments]))
      except SystemExit as error:
        return given, error.code
    return given, None

  return run


def test_each_command_gets_the_keys_that_it_reads(start, capsys):
  given, code = start(
    f"--config={CONFIG}",
    "--output=there",
    "--config.search.steps=7",
    "--config.finetune.steps=9",
    "--config.budget=bops=3bit",
    "--config.data.name=digits",
  )
  assert code is None
  scripts = [pathlib.Path(command[1]) for command in given]
  assert [path.name for path in scripts] == [
    "search.py",
    "finetune.py",
    "evaluate.py",
    "export.py",
  ]
  assert all(path.exists() for path in scripts)
  search, finetune, evaluate, export = (command[2:] for command in given)
  assert search == [
    f"--config={CONFIG}",
    "--config.search.steps=7",
    "--config.budget=bops=3bit",
    "--config.data.name=digits",
    "--workdir=there/search",
  ]
  assert finetune == [
    f"--config={CONFIG}",
    "--config.finetune.steps=9",
    "--config.data.name=digits",
    "--policy=there/search/policy.json",
    "--from=there/search",
    "--workdir=there/finetune",
  ]
  assert evaluate == ["--workdir=there/finetune"]
  assert export[0] == "--workdir=there/finetune"
  assert export[-1] == "--output=there"
  assert {"--format=onnx", "--format=packed"} < set(export)
  printed = capsys.readouterr().out
  assert f"$ python launch/finetune.py --config={CONFIG}" in printed


def test_a_command_that_fails_is_the_last(start):
  given, code = start(codes=(0, 3))
  assert (len(given), code) == (2, 3)


@pytest.mark.parametrize(
  ("argument", "named"),
  [
    ("--config.search.stepz=3", "search.stepz"),
    ("--steps=3", "--steps=3"),
    ("more", "more"),
  ],
)
def test_an_unknown_argument_runs_nothing(start, argument, named):
  given, code = start(argument)
  assert given == []
  assert named in code
  assert "\n" not in code


@pytest.mark.slow
def test_all_of_it_on_a_small_network(tmp_path):
  command = [
    sys.executable,
    str(ROOT / "launch" / "deploy.py"),
    f"--config={CONFIG}",
    f"--output={tmp_path}",
    "--config.data.name=digits",
    "--config.data.image_size=16",
    "--config.pretrain.steps=3",
    "--config.search.steps=3",
    "--config.finetune.steps=3",
  ]
  for _ in range(2):
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    table = lines[lines.index("resnet8 on digits, test, 359 images") :]
    for name in ("onnx", "packed", "stablehlo", "orbax"):
      (line,) = (x for x in table if x.startswith(f"{name} "))
      assert float(line.split()[7]) > 99
    assert (tmp_path / "network-report.png").stat().st_size > 5000
  # What has ended is read.
  assert "has ended; this is its result" in done.stderr
