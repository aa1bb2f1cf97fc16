"""Compiled programs are kept between runs, in the user's cache directory."""

import os
import pathlib
from typing import Any

import jax


def enable() -> None:
  """Turn JAX's persistent compilation cache on, unless it is set already.

  It lies in $XDG_CACHE_HOME/asga_jax, by default ~/.cache/asga_jax;
  JAX_COMPILATION_CACHE_DIR chooses another place.
  """
  current: Any = jax.config
  if current.jax_compilation_cache_dir is not None:
    return
  root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  path = pathlib.Path(root) / "asga_jax" / "compiled"
  jax.config.update("jax_compilation_cache_dir", str(path))
  # A start compiles hundreds of small programs, together as long as one step.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
