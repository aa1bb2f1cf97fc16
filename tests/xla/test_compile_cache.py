"""Where compiled programs are kept."""

import pathlib
import subprocess
import sys

import pytest

# In a process of its own, as the cache is chosen once.
SHOW = """
import jax
from asga_jax.xla import compile_cache
compile_cache.enable()
jax.jit(lambda x: x + 1)(1.0).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


def _run(**environment):
  done = subprocess.run(
    [sys.executable, "-c", SHOW],
    env={"PATH": "", **environment},
    capture_output=True,
    text=True,
    check=True,
  )
  return pathlib.Path(done.stdout.strip())


@pytest.mark.parametrize(
  ("name", "inside"),
  [
    ("JAX_COMPILATION_CACHE_DIR", "."),
    ("XDG_CACHE_HOME", "asga_jax/compiled"),
    ("HOME", ".cache/asga_jax/compiled"),
  ],
)
def test_small_programs_are_kept_in_the_place_that_was_chosen(
  name, inside, tmp_path
):
  found = _run(**{name: str(tmp_path)})
  assert found == tmp_path / inside
  assert list(found.glob("jit_*-cache"))


def test_small_programs_can_be_left_out(tmp_path):
  _run(
    JAX_COMPILATION_CACHE_DIR=str(tmp_path),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="100",
  )
  assert not list(tmp_path.glob("jit_*-cache"))
