"""launch/search.py: its flags, its exit codes, and a kill."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from asga_jax.runs import checkpoints
from asga_jax.runs import metrics as metrics_log

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = (
  "--config=configs/resnet8.py",
  "--config.data.name=digits",
  "--config.data.image_size=8",
  "--config.data.pad=1",
  "--config.batch_size=16",
  "--config.eval_batch_size=50",
  "--config.report_batches=1",
  "--config.batch_norm_batches=1",
  "--config.checkpoint_every=3",
  "--config.bits=(2,4)",
  "--config.pretrain.steps=0",
)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  """A function that starts a script, with one cache of compiled programs."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }

  def start(script, *arguments):
    return subprocess.Popen(
      [sys.executable, f"launch/{script}.py", *arguments],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  return start


def _output(process, code=0):
  output, _ = process.communicate(timeout=600)
  assert process.returncode == code, output
  return output


def test_bad_flags_end_with_a_message_and_an_exit_code(command, tmp_path):
  workdir = tmp_path / "run"
  search = ("search", *FLAGS, f"--workdir={workdir}")
  unknown = command(*search, "--config.stepz=3")
  malformed = command(*search, "--config.budget=bops=four")
  missing = command("export", f"--workdir={tmp_path / 'nowhere'}")
  output = _output(unknown, 1)
  assert "config.stepz is unknown; did you mean" in output or (
    "config.stepz is unknown; accepted" in output
  )
  assert "Traceback" not in output
  output = _output(malformed, 1)
  assert "bops=four" in output
  assert "Traceback" not in output
  output = _output(missing, 1)
  assert "nowhere" in output
  assert "Traceback" not in output
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_by_signal_nine_it_resumes_from_the_command_line(
  command, tmp_path, contents
):
  flags = (*FLAGS, "--config.search.steps=60", "--config.flush_every=1")
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  _output(command("search", *flags, f"--workdir={whole}"))
  killed = command("search", *flags, f"--workdir={cut}")
  started = time.monotonic()
  while (checkpoints.latest_step(cut / "checkpoints") or 0) < 6:
    assert killed.poll() is None, killed.communicate()
    assert time.monotonic() < started + 500
    time.sleep(0.01)
  killed.send_signal(signal.SIGKILL)
  killed.communicate()
  assert killed.returncode == -signal.SIGKILL
  assert not (cut / "policy.json").exists()
  output = _output(command("search", *flags, f"--workdir={cut}"))
  assert "from the checkpoint of step" in output
  policy = (whole / "policy.json").read_bytes()
  assert (cut / "policy.json").read_bytes() == policy
  records = metrics_log.read_metrics(cut / "metrics.jsonl")
  assert [r["step"] for r in records] == list(range(1, 61))

  before = contents(cut)
  output = _output(command("search", *flags, f"--workdir={cut}"))
  assert "has ended" in output
  assert "bops=4bit" in output
  assert contents(cut) == before

  again = tmp_path / "again.json"
  _output(command("export", f"--workdir={cut}", f"--output={again}"))
  assert again.read_bytes() == policy
  _output(command("export", f"--workdir={cut}", "--budget=bops=3bit"))
  other = json.loads((cut / "policy-bops=3bit.json").read_text())
  assert other["budget"] == "bops=3bit"
  assert 0.9 < other["cost"]["budget_used"] <= 1
  assert (cut / "policy.json").read_bytes() == policy
