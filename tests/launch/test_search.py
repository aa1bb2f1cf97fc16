"""launch/search.py: its flags, its exit codes, and a kill."""

import json
import signal
import time

import pytest
from started import FLAGS, output, with_cache

from asga_jax.runs import checkpoints
from asga_jax.runs import metrics as metrics_log


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  return with_cache(tmp_path_factory.mktemp("cache"))


def test_bad_flags_end_with_a_message_and_an_exit_code(command, tmp_path):
  search = ("search", *FLAGS, f"--workdir={tmp_path / 'run'}")
  unknown = command(*search, "--config.stepz=3")
  missing = command("export", f"--workdir={tmp_path / 'nowhere'}")
  told = output(unknown, 1)
  assert "config.stepz is unknown; did you mean" in told or (
    "config.stepz is unknown; accepted" in told
  )
  assert "Traceback" not in told
  told = output(missing, 1)
  assert "nowhere" in told
  assert "Traceback" not in told
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_malformed_value_ends_as_bad_flags_do(command, tmp_path):
  flags = (*FLAGS, f"--workdir={tmp_path / 'run'}")
  told = output(command("search", *flags, "--config.budget=bops=four"), 1)
  assert "bops=four" in told
  assert "Traceback" not in told
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_by_signal_nine_it_resumes_from_the_command_line(
  command, tmp_path, contents
):
  flags = (*FLAGS, "--config.search.steps=60", "--config.flush_every=1")
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  output(command("search", *flags, f"--workdir={whole}"))
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
  told = output(command("search", *flags, f"--workdir={cut}"))
  assert "from the checkpoint of step" in told
  policy = (whole / "policy.json").read_bytes()
  assert (cut / "policy.json").read_bytes() == policy
  records = metrics_log.read_metrics(cut / "metrics.jsonl")
  assert [r["step"] for r in records] == list(range(1, 61))

  before = contents(cut)
  told = output(command("search", *flags, f"--workdir={cut}"))
  assert "has ended" in told
  assert "bops=4bit" in told
  assert contents(cut) == before

  again = tmp_path / "again.json"
  output(command("export", f"--workdir={cut}", f"--output={again}"))
  assert again.read_bytes() == policy
  output(command("export", f"--workdir={cut}", "--budget=bops=3bit"))
  other = json.loads((cut / "policy-bops=3bit.json").read_text())
  assert other["budget"] == "bops=3bit"
  assert 0.9 < other["cost"]["budget_used"] <= 1
  assert (cut / "policy.json").read_bytes() == policy
