"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import pathlib


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
  """Write a text in UTF-8, as `write_bytes_atomic` does."""
  write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: str | os.PathLike[str], contents: bytes) -> None:
  """Write a file whole or not at all, replacing the one that is there.

  Args:
    path: the file; its directory must exist.
    contents: what to write.

  Raises:
    OSError: if it cannot be written; the old file is then as it was.
  """
  path = pathlib.Path(check_path(path))
  # Not tempfile: its files are private, a result is for others to read.
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "wb") as file:
      file.write(contents)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    _remove(temporary)
    raise _named(error, path) from error
  except BaseException:
    _remove(temporary)
    raise
  # Without this a power cut may lose the new name though not the new bytes.
  directory = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(directory)
  finally:
    os.close(directory)


def check_path(path: object) -> str:
  """Check that a path is one, and give it as text.

  Raises:
    ValueError: it is neither a string nor an `os.PathLike` of one.
  """
  text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
  if not isinstance(text, str) or not text or "\0" in text:
    raise ValueError(
      f"path is {repr(path)[:80]} ({type(path).__name__}); expected a string or"
      " a pathlib.Path."
    )
  return text


def check_writable(path: str | os.PathLike[str]) -> None:
  """Check before long work that a file can be written; it is not touched.

  Raises:
    OSError: it is a directory, or its directory is missing or read-only.
  """
  path = pathlib.Path(check_path(path))
  if path.is_dir():
    raise IsADirectoryError(errno.EISDIR, "a directory, not a file", str(path))
  trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    trial.touch()
    trial.unlink()
  except OSError as error:
    raise _named(error, path) from error


def _named(error: OSError, path: pathlib.Path) -> OSError:
  """Say which file cannot be written, instead of its temporary name."""
  reason = error.strerror or str(error)
  if error.errno is None:
    return OSError(f"{path} cannot be written: {reason}")
  return OSError(error.errno, f"cannot be written: {reason}", str(path))


def _remove(temporary: pathlib.Path) -> None:
  # Below a file it cannot even be looked for.
  with contextlib.suppress(OSError):
    temporary.unlink()
