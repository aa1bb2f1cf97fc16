"""launch/finetune.py: its flags, and what goes wrong in a line."""

import importlib.util
import pathlib
import sys
from unittest import mock

import pytest
from absl.testing import flagsaver

from asga_jax.runs import finetune as finetune_run
from asga_jax.runs import read

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"--config={ROOT / 'configs' / 'resnet8.py'}"


@pytest.fixture(scope="module")
def script(script_flags):
  path = ROOT / "launch" / "finetune.py"
  spec = importlib.util.spec_from_file_location("finetune_script", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _run(script, *arguments):
  line = ["finetune", CONFIG, *arguments]
  # Where the flag of a configuration looks for those of its keys.
  with flagsaver.flagsaver(), mock.patch.object(sys, "argv", line):
    script.main(script.parse(line))


def test_flags_reach_the_configuration(script, tmp_path, capsys):
  finished = read.FinishedFinetuning(None, {"top1": 0.25})
  with mock.patch.object(
    finetune_run, "run_finetuning", return_value=finished
  ) as run:
    _run(
      script,
      "--policy=4bit",
      "--from=elsewhere",
      f"--workdir={tmp_path}",
      "--config.finetune.steps=7",
    )
  config, path = run.call_args.args
  assert config.finetune.policy == "4bit"
  assert config.finetune.start_from == "elsewhere"
  assert config.finetune.steps == 7
  assert "search" not in config
  assert path == str(tmp_path)
  assert "top1: 0.2500" in capsys.readouterr().out


def test_a_run_without_a_directory_is_named_by_its_policy(script):
  finished = read.FinishedFinetuning(None, {})
  paths = []
  for bits in ("4bit", "8bit"):
    with mock.patch.object(
      finetune_run, "run_finetuning", return_value=finished
    ) as run:
      _run(script, f"--policy={bits}")
    paths.append(str(run.call_args.args[1]))
  assert all(path.startswith("runs/resnet8-") for path in paths)
  assert paths[0] != paths[1]


@pytest.mark.parametrize(
  ("flag", "named"),
  [
    ("--config.search.steps=3", "config.search.steps is not read"),
    ("--config.finetune.stepz=3", "config.finetune.stepz is unknown"),
    ("--config.finetune.steps=many", "many"),
  ],
)
def test_a_bad_flag_ends_in_a_line(script, flag, named):
  with pytest.raises(SystemExit, match=named) as caught:
    _run(script, flag)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("flags", "named"),
  [
    (("--coordinator=host:1",), "of --multihost; expected that flag too"),
    (("--multihost", "--processes=2"), "no --coordinator=HOST:PORT and"),
    (("--multihost",), "the processes cannot meet: "),
  ],
)
def test_processes_that_cannot_meet_end_with_code_one(
  script, flags, named, caplog
):
  with pytest.raises(SystemExit) as caught:
    _run(script, *flags)
  assert caught.value.code == 1
  assert named in caplog.text


def test_a_bad_policy_ends_with_code_one(script, tmp_path, caplog):
  with pytest.raises(SystemExit) as caught:
    _run(script, "--policy=9bit", f"--workdir={tmp_path}")
  assert caught.value.code == 1
  assert "9bit" in caplog.text
  assert list(tmp_path.iterdir()) == []
