"""Compiled programs are kept between runs, in the user's cache directory."""

import os
import pathlib
from typing import Any

import jax
from absl import logging

# Bytes: the steps of sixty deep networks and all small programs about them.
LARGEST = 2_000_000_000


def enable() -> None:
  """Turn JAX's persistent compilation cache on, for programs of any size.

  It lies in $XDG_CACHE_HOME/asga_jax, by default ~/.cache/asga_jax, where what
  was not used for longest is removed once there are more than 2 GB.
  JAX_COMPILATION_CACHE_DIR chooses another place, from which nothing is removed
  unless JAX_COMPILATION_CACHE_MAX_SIZE says how many bytes are kept, there or
  in the place above; -1 is for no limit.
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS leaves small programs out.
  """
  current: Any = jax.config
  largest = -1
  if current.jax_compilation_cache_dir is None:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = pathlib.Path(root) / "asga_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(path))
    largest = LARGEST
  # A start compiles hundreds of small programs, together as long as one step.
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  if "JAX_COMPILATION_CACHE_MAX_SIZE" in os.environ:
    largest = current.jax_compilation_cache_max_size
  if largest > 0:
    # JAX's own limit reads every file again for each program that it adds
    # (0.2 s among three thousand), and adds none any more once a kill has left
    # a program without its date.
    jax.config.update("jax_compilation_cache_max_size", -1)
    _shorten(pathlib.Path(current.jax_compilation_cache_dir), largest)


def _shorten(directory: pathlib.Path, largest: int) -> None:
  """Remove the programs that were not used for longest, beyond a size."""
  kept = []
  try:
    with os.scandir(directory) as entries:
      for entry in entries:
        if entry.name.endswith("-cache"):
          found = entry.stat()
          # Reading is dated once a day at most, and on some disks never.
          used = max(found.st_atime, found.st_mtime)
          kept.append((used, found.st_size, entry.path))
    size = sum(found[1] for found in kept)
    kept.sort()
    removed = 0
    for _, bytes_, path in kept:
      if size <= largest:
        break
      # Another command may be at it too.
      pathlib.Path(path).unlink(missing_ok=True)
      size -= bytes_
      removed += 1
  except OSError as error:
    # No directory yet, or one that is not on this machine, or not ours.
    logging.debug("compiled programs are left as they are: %s", error)
    return
  if removed:
    logging.info(
      "removed the %d compiled programs of %s that were not used for longest",
      removed,
      directory,
    )
