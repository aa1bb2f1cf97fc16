"""Two processes against one, and what happens when one of them ends."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import fake_devices
import numpy as np
import pytest
from started import FLAGS, ROOT, output

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


def free_port():
  with socket.socket() as taken:
    taken.bind(("localhost", 0))
    return taken.getsockname()[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


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
      started.append(
        subprocess.Popen(
          [sys.executable, COMMAND, script, *arguments, *flags, *own[index]],
          cwd=ROOT,
          env=environment,
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          text=True,
        )
      )
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


def test_two_processes_go_on_as_two_and_find_the_policy_of_one(
  command, whole, tmp_path
):
  run = ("search", *FEW, f"--workdir={tmp_path}")
  killed = command(*run, count=2)
  wait_for_step(tmp_path, BEGUN, killed)
  killed[1].send_signal(signal.SIGKILL)
  began = time.monotonic()
  told = output(killed[0], 1)
  assert time.monotonic() < began + 60
  killed[1].communicate()
  assert "another has ended or cannot be reached" in told
  assert "Traceback" not in told
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
  began = time.monotonic()
  told, _ = killed[1].communicate(timeout=60)
  assert time.monotonic() < began + 60
  killed[0].communicate()
  assert killed[1].returncode not in (0, None)
  # Our own sentence, or JAX's, whoever sees it first.
  assert (
    "another has ended or cannot be reached" in told
    or "another task died" in told
  )


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


MEET = "from asga_jax.runs import meeting\nmeeting.start("


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


# 20 steps in float64 of a state that lies whole or in parts, and its
# checkpoint, which another number of processes reads.
STEPS = """
import json, sys
from asga_jax.runs import meeting
port, count, index, way, folder, mode = sys.argv[1:]
count, index = int(count), int(index)
if count > 1:
  meeting.start(f"localhost:{port}", count, index)
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
import asga_jax
from asga_jax.runs import checkpoints
from asga_jax.training import loop, sharding

class Network(nnx.Module):
  def __init__(self, rngs):
    keys = {"rngs": rngs, "param_dtype": jnp.float64}
    self.first = nnx.Conv(1, 4, (3, 3), **keys)
    self.norm = nnx.BatchNorm(4, **keys)
    self.head = nnx.Linear(4, 3, **keys)
  def __call__(self, x):
    x = nnx.relu(self.norm(self.first(x))).mean(axis=(1, 2))
    return self.head(x)

rng = np.random.default_rng(0)
share = slice(16 * index // count, 16 * (index + 1) // count)
example = rng.normal(size=(16, 6, 6, 1))
batches = [
  {"image": rng.normal(size=(16, 6, 6, 1))[share],
   "label": rng.integers(0, 3, 16).astype(np.int32)[share]}
  for _ in range(20)]

def prepare(key, batch):
  noise = jax.random.normal(key, batch["image"].shape, jnp.float64)
  return {**batch, "image": batch["image"] + 0.1 * noise}

shard = (("weights/", "data"),) if way == "parts" else ()
model = asga_jax.searchable(
  Network(nnx.Rngs(0)), example,
  rules=[asga_jax.Rule(".*", weight_bits=(2, 4, 8),
                       activation_bits=(2, 4, 8))])
made = asga_jax.start_search(
  model, budget="bops=4bit", prepare=prepare,
  settings=asga_jax.SearchSettings(steps=20, shard=shard))
records = []
first, state = 0, made.state
if mode == "go on":
  first, state = checkpoints.restore_latest(folder, state)
kernel = state.params.weights["first"]["kernel"]
state = loop.run(made.step, state, batches[first:], 20, made.mesh,
                 on_records=records.extend, flush_every=1,
                 stop=lambda: mode == "begin" and len(records) == 9)
if mode == "begin":
  with checkpoints.Checkpoints(folder) as kept:
    kept.save(int(state.step), state)
found = asga_jax.finish_search(made, state)
policy = asga_jax.allocate(found)
print(json.dumps({
  "parts": kernel.sharding.shard_shape(kernel.shape),
  "devices": jax.device_count(),
  "losses": [float(r["loss"]) for r in records],
  "scores": [float(x) for rows in found.scores[found.score].values()
             for x in rows.ravel()],
  "bits": {path: (layer.weight_bits, layer.activation_bits)
           for path, layer in policy.layers.items()}}))
"""


def steps(environment, folder, *, count=1, devices=1, way="whole", mode="run"):
  """Runs STEPS in so many processes and gives what each found."""
  port = free_port()
  count_flag = f"--xla_force_host_platform_device_count={devices}"
  xla_flags = " ".join((count_flag, *fake_devices.UNOPTIMIZED))
  started = [
    subprocess.Popen(
      [
        *(sys.executable, "-c", STEPS),
        *(str(port), str(count), str(index), way, str(folder), mode),
      ],
      cwd=ROOT,
      env={**environment, "JAX_ENABLE_X64": "1", "XLA_FLAGS": xla_flags},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]
  found = []
  for process in started:
    told, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    found.append(json.loads(told.splitlines()[-1]))
  for each in found:
    assert each == found[0]
    assert each["devices"] == count * devices
  return found[0]


@pytest.fixture(scope="module")
def of_one(environment, tmp_path_factory):
  return steps(environment, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("way", ["whole", "parts"])
def test_in_float64_two_by_two_devices_are_one(
  environment, of_one, tmp_path, way
):
  found = steps(environment, tmp_path, count=2, devices=2, way=way)
  shape = [3, 3, 1, 4]
  assert found["parts"] == (shape if way == "whole" else [3, 3, 1, 1])
  assert len(found["losses"]) == 20
  np.testing.assert_allclose(
    found["losses"], of_one["losses"], rtol=0, atol=1e-10
  )
  np.testing.assert_allclose(
    found["scores"], of_one["scores"], rtol=0, atol=1e-8
  )
  assert found["bits"] == of_one["bits"]


def test_a_state_in_parts_on_two_processes_goes_on_in_one(
  environment, of_one, tmp_path
):
  begun = steps(
    environment, tmp_path, count=2, devices=2, way="parts", mode="begin"
  )
  assert len(begun["losses"]) == 10
  # The checksums are those of whole arrays, whoever asks.
  index = (tmp_path / "10" / "index" / "metadata").read_text()
  assert "crc32" in index
  assert '"crc32": null' not in index
  found = steps(environment, tmp_path, mode="go on")
  np.testing.assert_allclose(
    begun["losses"] + found["losses"], of_one["losses"], rtol=0, atol=1e-10
  )
  assert found["bits"] == of_one["bits"]
