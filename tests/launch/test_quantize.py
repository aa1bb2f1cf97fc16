"""launch/quantize.py: its flags, and what goes wrong in a line."""

import importlib.util
import pathlib
import sys
from unittest import mock

import pytest
from absl.testing import flagsaver

from asga_jax.runs import quantize as quantize_run
from asga_jax.runs import quantize_summary

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"--config={ROOT / 'configs' / 'efficientnet_lite0.py'}:imagenet"


@pytest.fixture(scope="module")
def script(script_flags):
  path = ROOT / "launch" / "quantize.py"
  spec = importlib.util.spec_from_file_location("quantize_script", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _run(script, *arguments):
  line = ["quantize", CONFIG, *arguments]
  # Where the flag of a configuration looks for those of its keys.
  with flagsaver.flagsaver(), mock.patch.object(sys, "argv", line):
    script.main(script.parse(line))


def test_flags_reach_the_configuration(script, tmp_path, capsys):
  with (
    mock.patch.object(quantize_run, "run_quantization") as run,
    mock.patch.object(
      quantize_summary, "format_quantization", return_value="it is well"
    ),
  ):
    _run(
      script,
      "--images=there",
      f"--workdir={tmp_path}",
      "--config.budget=drop=0.5%",
      "--config.weights.path=trained.safetensors",
      "--config.post_training.evaluations=7",
    )
  config, path = run.call_args.args
  assert config.post_training.source == "there"
  assert config.post_training.evaluations == 7
  assert config.budget == "drop=0.5%"
  assert config.data.image_size == 224
  assert config.data.crop == 0.875
  assert "search" not in config
  assert path == str(tmp_path)
  printed = capsys.readouterr().out
  assert "it is well" in printed
  assert "network.onnx" in printed


@pytest.mark.parametrize(
  ("flag", "named"),
  [
    ("--config.search.steps=3", "config.search.steps is not read"),
    ("--config.post_training.image=3", "config.post_training.image is unknown"),
    ("--config.post_training.images=many", "many"),
  ],
)
def test_a_bad_flag_ends_in_a_line(script, flag, named):
  with pytest.raises(SystemExit, match=named) as caught:
    _run(script, flag)
  assert "\n" not in str(caught.value)


def test_no_weights_end_with_code_one(script, tmp_path, caplog):
  with pytest.raises(SystemExit) as caught:
    _run(script, "--images=there", f"--workdir={tmp_path}")
  assert caught.value.code == 1
  assert "config.weights.path is empty" in caplog.text
  assert list(tmp_path.iterdir()) == []
