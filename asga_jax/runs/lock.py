"""One process at a time writes in a work directory: a lock of the system."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import TextIO

import jax
from absl import logging

from asga_jax.runs import workdir

NAME = "lock.json"


@contextlib.contextmanager
def hold(path: str | os.PathLike[str]) -> Iterator[None]:
  """Keep other runs out of a work directory for as long as this one goes on.

  The lock is the system's, on a file that says who holds it: it ends with its
  process, however that ends. Of several processes of one run the first holds
  it. A directory that is empty at the end and was made here is removed again.

  Args:
    path: the directory; it is made if it is not there.

  Raises:
    WorkdirError: another process holds it, or it cannot be written to.
  """
  if jax.process_index():
    yield
    return
  directory = pathlib.Path(path)
  places = (directory, *directory.absolute().parents)
  made = [place for place in places if not place.exists()]
  try:
    directory.mkdir(parents=True, exist_ok=True)
    file = _open_locked(directory)
  except OSError as error:
    raise workdir.unwritable(directory, error) from error
  try:
    yield
  finally:
    # While it is still held: whoever opened it before sees that it is gone.
    with contextlib.suppress(OSError):
      (directory / NAME).unlink()
    file.close()
    with contextlib.suppress(OSError):
      for place in made:
        place.rmdir()


def _open_locked(directory: pathlib.Path) -> TextIO:
  while True:
    file = open(directory / NAME, "a+", encoding="utf-8")  # noqa: SIM115
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      with file:
        raise workdir.WorkdirError(
          f"{_holder(file)} is running in {directory}; wait until it ends, or "
          "choose another --workdir"
        ) from None
    except OSError as error:
      logging.warning(
        "%s cannot be locked (%s): see to it that no other run writes there",
        directory,
        error.strerror,
      )
    if _is_there(file, directory / NAME):
      break
    file.close()
  file.truncate(0)
  now = datetime.datetime.now().astimezone()
  holder = {
    "process": os.getpid(),
    "host": socket.gethostname(),
    "since": now.isoformat(" ", "seconds"),
  }
  file.write(json.dumps(holder) + "\n")
  file.flush()
  return file


def _holder(file: TextIO) -> str:
  file.seek(0)
  try:
    found = json.loads(file.read())
    process, host, since = (found[x] for x in ("process", "host", "since"))
  except (ValueError, KeyError, TypeError):
    return "another process"  # it is just writing who it is
  return f"process {process} on {host}, since {since},"


def _is_there(file: TextIO, path: pathlib.Path) -> bool:
  """Tell whether a path still leads to an open file."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False
