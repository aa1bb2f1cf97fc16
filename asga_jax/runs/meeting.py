"""How the processes of a run meet, and that they are alike."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import threading

import jax
from absl import logging

from asga_jax.runs import checkpoints, config_checks, processes

# Seconds that processes wait for each other.
MEET = 300
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_SHOWN = 5  # differences that an error names


class MeetingError(ValueError):
  """Processes that cannot run together."""


def check_address(
  coordinator: str | None, count: int | None, index: int | None
) -> None:
  """Check where processes are to meet; all None leaves that to the cluster.

  Args:
    coordinator: 'host:port'.
    count: of the processes.
    index: which of them this is.

  Raises:
    MeetingError: some are missing or make no sense.
  """
  given = {
    "--coordinator=HOST:PORT": coordinator,
    "--processes=N": count,
    "--process=I": index,
  }
  missing = [flag for flag, value in given.items() if value is None]
  if len(missing) == len(given):
    return
  if coordinator is None or count is None or index is None:
    raise MeetingError(
      f"there is no {' and no '.join(missing)}; expected all of"
      f" {', '.join(given)}, or none where a cluster tells them"
    )
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise MeetingError(
      f"--coordinator is {coordinator!r}; expected HOST:PORT, such as"
      " 10.0.0.1:9876"
    )
  if count < 1:
    raise MeetingError(f"--processes is {count}; expected 1 or more")
  if not 0 <= index < count:
    raise MeetingError(
      f"--process is {index} of --processes={count}; expected 0 to {count - 1}"
    )


def join(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  *,
  limit: int = MEET,
) -> None:
  """Let the processes of a run meet; before JAX computes anything.

  Args:
    coordinator: 'host:port' where the first process listens; None, and the two
      others too, where JAX knows the cluster (SLURM, Kubernetes, Cloud TPU).
    count: of the processes.
    index: which of them this is, from 0.
    limit: seconds to wait for the others; then this process says so and ends
      with 1.

  Raises:
    MeetingError: an address that is none or in use, no cluster, or processes
      of unequal devices.
  """
  check_address(coordinator, count, index)
  if coordinator is not None and index == 0:
    _check_port(coordinator)
  # It would take SIGTERM, which `interrupts` takes.
  jax.config.update("jax_enable_preemption_service", False)
  # JAX's own limit aborts the process, with a stack for a message.
  watch = threading.Timer(limit, _give_up, (coordinator, count, limit))
  watch.daemon = True
  watch.start()
  try:
    jax.distributed.initialize(
      coordinator,
      count,
      index,
      initialization_timeout=limit + 60,
      heartbeat_timeout_seconds=processes.SILENT,
      shutdown_timeout_seconds=2 * processes.SILENT,
    )
  except (RuntimeError, ValueError, TypeError) as error:
    raise MeetingError(
      f"the processes cannot meet: {processes.line(error)}; expected a cluster"
      " that JAX knows (SLURM, Kubernetes, Cloud TPU), or"
      " --coordinator=HOST:PORT --processes=N --process=I"
    ) from error
  finally:
    watch.cancel()
  owners = [device.process_index for device in jax.devices()]
  devices = [owners.count(each) for each in range(jax.process_count())]
  if len({*devices}) > 1:
    raise MeetingError(
      f"the processes have {', '.join(map(str, devices))} devices; expected as"
      " many in each"
    )
  if not processes.first():
    logging.set_verbosity(logging.WARNING)


def _check_port(coordinator: str) -> None:
  """Raise MeetingError if somebody listens where the first process is to."""
  port = int(coordinator.rpartition(":")[2])
  try:
    with socket.socket() as trial:
      trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      trial.bind(("", port))
  except OSError as error:
    raise MeetingError(
      f"--coordinator={coordinator}: process 0 cannot listen at port {port}"
      f" ({error.strerror}); expected a port that is free"
    ) from error


def _give_up(coordinator: str | None, count: int | None, limit: int) -> None:
  """End a process that waits in vain."""
  place = "" if coordinator is None else f" at {coordinator}"
  whole = "all" if count is None else f"all of {count}"
  processes.say(
    f"{whole} processes have not met{place} within {limit} s; expected each to"
    " be started with the same address, and its port to be open between them"
  )
  os._exit(1)


def check_alike(
  config: config_checks.Config, directory: str | os.PathLike[str]
) -> None:
  """Check that all processes do the same; before long work, in all of them.

  Args:
    config: of the run.
    directory: the work directory.

  Raises:
    MeetingError: some differ, in their configuration, the package's source,
      versions or what they see of the directory; it names process, thing and
      values.
  """
  if not processes.several():
    return
  there = checkpoints.latest_step(pathlib.Path(directory) / "checkpoints")
  ended = (pathlib.Path(directory) / "summary.json").exists()
  facts = json.dumps(
    {
      "the newest checkpoint": there,
      "whether the run has ended": ended,
      **_versions(),
      **_settings(config),
    }
  )
  differences = find_differences(
    [json.loads(text) for text in processes.gathered(facts.encode())]
  )
  if differences:
    rest = len(differences) - _SHOWN
    raise MeetingError(
      "the processes of a run must be alike: "
      + "; ".join(differences[:_SHOWN])
      + (f"; and {rest} more" if rest > 0 else "")
    )


def find_differences(facts: list[dict[str, object]]) -> list[str]:
  """Say in what processes differ from the first.

  Args:
    facts: of each process, by name.
  """
  absent = object()

  def told(value: object) -> str:
    return "nothing" if value is absent else json.dumps(value)

  return [
    f"process {number} has {told(mine.get(name, absent))} for {name}, and"
    f" process 0 has {told(facts[0].get(name, absent))}"
    for number, mine in enumerate(facts)
    for name in sorted(mine.keys() | facts[0].keys())
    if mine.get(name, absent) != facts[0].get(name, absent)
  ]


def _settings(config: config_checks.Config) -> dict[str, object]:
  return {
    f"config.{key}": value
    for key, value in config_checks.flatten(config).items()
  }


def _versions() -> dict[str, object]:
  """Give the versions of what computes, and a hash of this package's source."""
  digest = hashlib.sha256()
  root = pathlib.Path(__file__).parents[1]
  for path in sorted(root.rglob("*.py")):
    digest.update(f"{path.relative_to(root)}\0".encode())
    digest.update(hashlib.sha256(path.read_bytes()).digest())
  return {
    "Python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
    "the source of asga_jax": digest.hexdigest()[:12],
  }
