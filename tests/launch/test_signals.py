"""A search that is ended anywhere goes on and finds the same policy."""

import random
import signal
import time

import pytest
from started import FLAGS, output, with_cache

pytestmark = pytest.mark.slow
FEW = (*FLAGS, "--config.search.steps=40", "--config.flush_every=1")
MOMENTS = 20


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  return with_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
  """The policy of a run that nothing ends, and how long it takes."""
  folder = tmp_path_factory.mktemp("whole")
  # Once more with all of it compiled: that is what moments are drawn from.
  output(command("search", *FEW, f"--workdir={folder / 'first'}"))
  began = time.monotonic()
  output(command("search", *FEW, f"--workdir={folder / 'second'}"))
  took = time.monotonic() - began
  policies = [
    (folder / name / "policy.json").read_bytes() for name in ("first", "second")
  ]
  assert policies[0] == policies[1]
  return policies[0], took


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_at_any_moment_it_goes_on(command, whole, tmp_path, number):
  policy, took = whole
  draw = random.Random(int(number))
  codes = set()
  for moment in range(MOMENTS):
    workdir = tmp_path / str(moment)
    run = ("search", *FEW, f"--workdir={workdir}")
    process = command(*run)
    time.sleep(draw.uniform(0.1, took))
    process.send_signal(number)
    told, _ = process.communicate(timeout=120)
    # It may have ended, or not have come to take signals yet.
    expected = {0, -number}
    if number == signal.SIGTERM:
      expected.add(128 + number)
    assert process.returncode in expected, told
    assert "Traceback" not in told
    codes.add(process.returncode)
    output(command(*run))
    assert (workdir / "policy.json").read_bytes() == policy
  # Some did end it before its own end.
  assert codes - {0}
