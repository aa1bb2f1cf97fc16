"""Compiled programs are kept between runs, in the user's cache directory."""

import os
import pathlib
from typing import Any

import jax


def enable() -> None:
  """Turn JAX's persistent compilation cache on, for programs of any size.

  It lies in $XDG_CACHE_HOME/asga_jax, by default ~/.cache/asga_jax;
  JAX_COMPILATION_CACHE_DIR chooses another place, and
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS leaves small programs out.
  """
  current: Any = jax.config
  if current.jax_compilation_cache_dir is None:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = pathlib.Path(root) / "asga_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(path))
  # A start compiles hundreds of small programs, together as long as one step.
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
