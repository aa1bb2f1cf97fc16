"""Two processes against one, and what happens when one of them ends."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from started import (
  FLAGS,
  ROOT,
  environment_with,
  free_port,
  output,
  python,
)

from asga_jax.runs import checkpoints, metrics

pytestmark = pytest.mark.slow
COMMAND = str(pathlib.Path(__file__).with_name("tiny_command.py"))
FEW = (
  *FLAGS,
  "--config.model=tiny",
  "--config.deployed.image_size=8",
  "--config.report_batches=3",
  "--config.flush_every=2",
  "--config.search.steps=40",
)
# Of a step that is hard to reach before a run of so many has ended.
BEGUN = 6


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  return environment_with(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def command(environment):
  """A function that starts a command on the tiny network, in processes."""

  def start(script, *arguments, count=1, own=((), ())):
    port = free_port()
    started = []
    for index in range(count):
      flags = ()
      if count > 1:
        flags = (
          "--multihost",
          f"--coordinator=localhost:{port}",
          f"--processes={count}",
          f"--process={index}",
        )
      words = (COMMAND, script, *arguments, *flags, *own[index])
      started.append(python(environment, *words))
    return started

  return start


def outputs(processes, code=0):
  return [output(process, code) for process in processes]


def wait_for_step(workdir, step, processes):
  began = time.monotonic()
  while (checkpoints.latest_step(workdir / "checkpoints") or 0) < step:
    assert all(process.poll() is None for process in processes)
    assert time.monotonic() < began + 500
    time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
  """The work directory of one process that nothing ends."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  outputs(command("search", *FEW, f"--workdir={workdir}"))
  return workdir


def same_run(workdir, whole):
  """Checks that a run has found the policy of one process."""
  policy = (whole / "policy.json").read_bytes()
  assert (workdir / "policy.json").read_bytes() == policy
  ours, theirs = (
    metrics.read_metrics(path / "metrics.jsonl") for path in (workdir, whole)
  )
  assert [r["step"] for r in ours] == list(range(1, 41))
  # In float32 sums over the batch are of another order.
  for one, other in zip(ours[:5], theirs[:5], strict=True):
    assert abs(one["loss"] - other["loss"]) < 1e-5
  # Every image is counted once: the same networks get the same ones right.
  measured = [
    json.loads((path / "measured.json").read_text())
    for path in (workdir, whole)
  ]
  assert measured[0] == measured[1]


def check_it_ends(alone):
  """Checks that the process that is left ends, and says why."""
  began = time.monotonic()
  told, _ = alone.communicate(timeout=60)
  assert time.monotonic() < began + 60
  assert alone.returncode not in (0, None)
  # Our own sentence, or JAX's, whoever sees it first.
  ours = "another has ended or cannot be reached" in told
  assert ours or "another task died" in told
  # With a checkpoint half-written JAX may yet abort after that.
  assert "Make room" not in told


def test_two_processes_go_on_as_two_and_find_the_policy_of_one(
  command, whole, tmp_path
):
  run = ("search", *FEW, f"--workdir={tmp_path}")
  killed = command(*run, count=2)
  wait_for_step(tmp_path, BEGUN, killed)
  killed[1].send_signal(signal.SIGKILL)
  check_it_ends(killed[0])
  killed[1].communicate()
  assert not (tmp_path / "summary.json").exists()
  first, second = outputs(command(*run, count=2))
  assert "going on from the checkpoint of step" in first
  assert "written to" in first
  assert "written to" not in second
  same_run(tmp_path, whole)
  first, second = outputs(command(*run, count=2))
  assert "has ended; this is its result" in first


def test_without_its_coordinator_a_process_ends(command, tmp_path):
  run = ("search", *FEW, f"--workdir={tmp_path}")
  killed = command(*run, count=2)
  wait_for_step(tmp_path, 3, killed)
  killed[0].send_signal(signal.SIGKILL)
  check_it_ends(killed[1])
  killed[0].communicate()


def test_a_signal_to_one_ends_two_that_go_on_as_one(command, whole, tmp_path):
  run = ("search", *FEW, f"--workdir={tmp_path}")
  ended = command(*run, count=2)
  wait_for_step(tmp_path, BEGUN, ended)
  ended[1].send_signal(signal.SIGTERM)
  for told in outputs(ended, 128 + signal.SIGTERM):
    assert "Traceback" not in told
  # The step that they agreed on, the last of a block.
  saved = checkpoints.latest_step(tmp_path / "checkpoints")
  assert BEGUN <= saved < 40
  assert saved % 2 == 0
  records = metrics.read_metrics(tmp_path / "metrics.jsonl")
  assert [r["step"] for r in records] == list(range(1, saved + 1))
  (told,) = outputs(command(*run))
  assert f"going on from the checkpoint of step {saved}" in told
  same_run(tmp_path, whole)


def test_one_process_goes_on_as_two(command, whole, tmp_path):
  run = ("search", *FEW, f"--workdir={tmp_path}")
  (ended,) = command(*run)
  wait_for_step(tmp_path, BEGUN, [ended])
  ended.send_signal(signal.SIGTERM)
  output(ended, 128 + signal.SIGTERM)
  first, _ = outputs(command(*run, count=2))
  assert "going on from the checkpoint of step" in first
  same_run(tmp_path, whole)


def test_a_network_trained_and_measured_by_two_is_that_of_one(
  command, tmp_path
):
  flags = (
    *FEW,
    "--config.pretrain.steps=4",
    "--config.search.steps=4",
    "--config.choice.score=kl",
    "--config.choice.images=32",
    "--config.choice.evaluations=1",
  )
  one, two = tmp_path / "one", tmp_path / "two"
  outputs(command("search", *flags, f"--workdir={one}"))
  outputs(command("search", *flags, f"--workdir={two}", count=2))
  policies = [
    json.loads((path / "policy.json").read_text())["layers"]
    for path in (one, two)
  ]
  assert policies[0] == policies[1]
  top1 = [
    json.loads((path / "float" / "summary.json").read_text())["top1"]
    for path in (one, two)
  ]
  assert top1[0] == top1[1]


def test_what_differs_is_named_before_the_first_step(command, tmp_path):
  run = ("search", *FEW, f"--workdir={tmp_path / 'run'}")
  own = ((), ("--config.search.learning_rate=0.5",))
  for told in outputs(command(*run, count=2, own=own), 1):
    assert (
      "process 1 has 0.5 for config.search.learning_rate, and process 0 has"
      in told
    )
    assert "Traceback" not in told
  assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_told(command, tmp_path):
  run = ("search", *FEW, f"--workdir={tmp_path / 'run'}")
  for told in outputs(command(*run, "--config.batch_size=15", count=2), 1):
    assert "batch_size=15 does not split over 2 devices" in told
    assert "Traceback" not in told
  assert not (tmp_path / "run" / "config.json").exists()


MEET = "from asga_jax.runs import meeting\nmeeting.join("


@pytest.mark.parametrize("process", [0, 1])
def test_who_is_alone_says_so(environment, process):
  port = free_port()
  code = f"{MEET}'localhost:{port}', 2, {process}, limit=4)"
  began = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
    timeout=100,
  )
  assert time.monotonic() < began + 60
  assert done.returncode == 1
  assert f"all of 2 processes have not met at localhost:{port} within 4 s" in (
    done.stderr
  )
  assert "Traceback" not in done.stderr
  assert "stack trace" not in done.stderr
