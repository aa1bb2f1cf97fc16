"""The built wheel works where the repository is not."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_carries_its_data(tmp_path):
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
  subprocess.run(
    [*pip, "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT], check=True
  )
  (wheel,) = tmp_path.glob("*.whl")
  target = tmp_path / "installed"
  subprocess.run(
    [*pip, "install", "--quiet", "--no-deps", "--target", target, wheel],
    check=True,
  )
  found = subprocess.run(
    [
      sys.executable,
      "-c",
      "import asga_jax, asga_jax.data as d;"
      "print(asga_jax.__file__);"
      "print(d.load('fashion_mnist_8k').train_images.shape)",
    ],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(target)},
    check=True,
    capture_output=True,
    text=True,
  ).stdout.splitlines()
  assert found[0].startswith(str(target))
  assert found[1] == "(6000, 28, 28, 1)"
  for file in ("data/fashion_mnist_8k.LICENSE", "report/page.html.j2"):
    assert (target / "asga_jax" / file).exists()
