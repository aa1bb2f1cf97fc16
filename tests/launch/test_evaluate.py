"""launch/evaluate.py: its flags, and what goes wrong in a line."""

import importlib.util
import pathlib
from unittest import mock

import pytest
from absl import flags
from absl.testing import flagsaver

from asga_jax.runs import evaluate as evaluate_run


@pytest.fixture(scope="module")
def script(script_flags):
  path = pathlib.Path(__file__).parents[2] / "launch" / "evaluate.py"
  spec = importlib.util.spec_from_file_location("evaluate_script", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _run(script, *arguments):
  with flagsaver.flagsaver():
    script.main(flags.FLAGS(["evaluate", *arguments]))


def test_flags_reach_the_evaluation(script, capsys):
  figures = {"top1": 0.5, "top5": 1.0, "loss": 0.125}
  report = {
    "data": "digits",
    "split": "train",
    "images": 4,
    "networks": {"quantized": figures},
  }
  with mock.patch.object(
    evaluate_run, "evaluate_run", return_value=report
  ) as run:
    _run(
      script,
      "--workdir=here",
      "--split=train",
      "--compare=float",
      "--compare=there",
    )
  assert run.call_args.args == ("here",)
  assert run.call_args.kwargs == {
    "split": "train",
    "compare": ["float", "there"],
  }
  printed = capsys.readouterr().out
  assert "50.00%  100.00%  0.1250" in printed
  assert "evaluation-train.json" in printed


def test_a_directory_without_a_run_ends_with_code_one(script, tmp_path, caplog):
  with pytest.raises(SystemExit) as caught:
    _run(script, f"--workdir={tmp_path}")
  assert caught.value.code == 1
  assert "config.json cannot be read" in caplog.text
