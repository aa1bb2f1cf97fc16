"""The public names: imported when they are first used, and not before."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

import asga_jax

INIT = pathlib.Path(asga_jax.__file__)
HEAVY = (
  "flax.nnx",
  "grain",
  "matplotlib",
  "onnx",
  "orbax",
  "scipy",
  "sklearn",
  "tensorflow_datasets",
  "tensorstore",
  "tqdm",
)
ROOMS = ("cost", "data", "models", "quantization", "runs", "training")


def _loaded(code):
  """Give the modules that are loaded after some lines, in a new process."""
  found = subprocess.run(
    [
      sys.executable,
      "-c",
      f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))",
    ],
    check=True,
    capture_output=True,
    text=True,
  )
  return set(json.loads(found.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
  "code",
  [
    "import asga_jax; asga_jax.asga_transform",
    "import asga_jax; dir(asga_jax)",
    "from asga_jax import diagnostics",
  ],
)
def test_the_optimizer_side_loads_nothing_else(code):
  loaded = _loaded(code)
  assert not loaded & set(HEAVY)
  ours = {name.split(".")[1] for name in loaded if name.startswith("asga_jax.")}
  assert not ours & set(ROOMS)


def test_a_heavy_name_would_be_noticed():
  loaded = _loaded("import asga_jax; asga_jax.searchable")
  assert "flax.nnx" in loaded
  assert "asga_jax.quantization" in loaded


def test_every_name_is_there_and_listed():
  assert asga_jax.__all__ == sorted(asga_jax.__all__)
  assert set(asga_jax.__all__) <= set(dir(asga_jax))
  for name in asga_jax.__all__:
    assert callable(getattr(asga_jax, name)), name


def test_type_checkers_see_the_same_names():
  tree = ast.parse(INIT.read_text())
  seen = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.startswith("asga_jax"):
      for alias in node.names:
        seen[alias.asname] = (node.module, alias.name)
  assert set(seen) == set(asga_jax.__all__)
  for name, (module, attribute) in seen.items():
    found = getattr(sys.modules[module], attribute, None) or getattr(
      __import__(module, fromlist=[attribute]), attribute
    )
    assert getattr(asga_jax, name) is found, name


def test_rooms_are_attributes_and_others_are_errors():
  assert asga_jax.cost.__name__ == "asga_jax.cost"
  with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
    asga_jax.nothing  # noqa: B018
