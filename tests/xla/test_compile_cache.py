"""Where compiled programs are kept, and how many."""

import os
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import pytest

from asga_jax.xla import compile_cache

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


def _fill(directory):
  """Makes four programs of 100 bytes, the first of them used last."""
  directory.mkdir(parents=True, exist_ok=True)
  for number, used in enumerate([90, 20, 30, 40]):
    path = directory / f"jit_{number}-0-cache"
    path.write_bytes(bytes(100))
    os.utime(path, (used, 10))
  (directory / "notes.txt").write_bytes(bytes(1000))


def _left(directory):
  return sorted(path.name[4] for path in directory.glob("jit_?-0-cache"))


def test_what_was_not_used_for_longest_is_removed(tmp_path):
  directory = tmp_path / "asga_jax" / "compiled"
  _fill(directory)
  _run(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_MAX_SIZE="250")
  assert _left(directory) == ["0", "3"]
  assert (directory / "notes.txt").exists()
  # JAX, which would need a package for its own limit, still adds programs.
  assert len(list(directory.glob("jit_*-cache"))) > 2


@pytest.mark.parametrize(
  ("environment", "left"),
  [
    ({}, ["0", "1", "2", "3"]),
    ({"JAX_COMPILATION_CACHE_MAX_SIZE": "-1"}, ["0", "1", "2", "3"]),
    ({"JAX_COMPILATION_CACHE_MAX_SIZE": "100"}, ["0"]),
  ],
)
def test_a_place_that_was_chosen_has_the_limit_that_was_chosen(
  environment, left, tmp_path
):
  _fill(tmp_path)
  _run(JAX_COMPILATION_CACHE_DIR=str(tmp_path), **environment)
  assert _left(tmp_path) == left


def test_our_place_has_a_limit_by_itself(tmp_path, monkeypatch):
  shortened = []
  monkeypatch.setattr(
    compile_cache, "_shorten", lambda *found: shortened.append(found)
  )
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE", raising=False)
  config = mock.Mock(jax_compilation_cache_dir=None)
  config.update = lambda name, value: setattr(config, name, value)
  monkeypatch.setattr(jax, "config", config)
  compile_cache.enable()
  place = tmp_path / "asga_jax" / "compiled"
  assert shortened == [(place, compile_cache.LARGEST)]


def test_the_library_alone_keeps_nothing(tmp_path):
  show = SHOW.replace("compile_cache.enable()", "import asga_jax")
  done = subprocess.run(
    [sys.executable, "-c", show],
    env={"PATH": "", "XDG_CACHE_HOME": str(tmp_path)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == "None"
  assert not list(tmp_path.iterdir())
