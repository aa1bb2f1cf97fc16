"""The plan of rooms: its page, its contract, and its limits of size."""

import configparser
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "asga_jax"
CHECK = pathlib.Path(sys.executable).with_name("lint-imports")


def test_the_page_shows_the_contract():
  parser = configparser.ConfigParser()
  parser.read(ROOT / ".importlinter")
  lines = parser["importlinter:contract:rooms"]["rooms"].split("\n")
  pairs = [line.split(":") for line in lines if line]
  held = {room: set(names.split()) for room, names in pairs}
  page = (ROOT / "docs" / "architecture.md").read_text()
  rows = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", page, re.MULTILINE)
  shown = {
    room: {"*"}
    if names.strip() == "all above"
    else set(names.replace(",", " ").split())
    for room, names in rows
  }
  assert shown == held


def _check(folder):
  return subprocess.run(
    [CHECK, "--no-cache"], cwd=folder, capture_output=True, text=True
  )


def test_a_forbidden_arrow_is_found(tmp_path):
  ignored = shutil.ignore_patterns("__pycache__", "*.npz")
  shutil.copytree(PACKAGE, tmp_path / "asga_jax", ignore=ignored)
  (tmp_path / "tests").mkdir()
  for name in (".importlinter", "tests/imports_contract.py"):
    shutil.copy(ROOT / name, tmp_path / name)
  kept = _check(tmp_path)
  assert kept.returncode == 0, kept.stdout
  with open(tmp_path / "asga_jax" / "sharpness" / "radius.py", "a") as file:
    file.write("\nfrom asga_jax.quantization import mixture\n")
  with open(tmp_path / "asga_jax" / "runs" / "build.py", "a") as file:
    file.write("\nfrom asga_jax.evidence import bench\n")
  new = tmp_path / "asga_jax" / "attic"
  new.mkdir()
  (new / "__init__.py").touch()
  broken = _check(tmp_path)
  assert broken.returncode == 1
  told = " ".join(broken.stdout.split())
  assert (
    "asga_jax.sharpness.radius imports asga_jax.quantization.mixture" in told
  )
  assert "asga_jax.runs.build imports asga_jax.evidence.bench" in told
  assert "attic has no line" in told


def test_files_are_few_and_short():
  assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 10
  rooms = "asga_jax", "benchmarks", "configs", "launch", "tests"
  files = [
    path
    for room in rooms
    for kind in ("*.py", "*.j2")
    for path in (ROOT / room).rglob(kind)
  ]
  assert len(files) > 400
  for path in files:
    assert len(path.read_text().splitlines()) <= 350, path
