"""Cells are found by what decides them, and told when they were edited."""

import errno
import json

import numpy as np
import pytest

from asga_jax import files
from asga_jax.evidence import cells

SPEC = {"cell": "policy", "budget": "bops=4bit", "seed": 0}


def _store(tmp_path):
  return cells.Store(tmp_path / "cells", tmp_path / "results.jsonl")


def test_a_cell_is_found_again_whatever_the_order_of_its_keys(tmp_path):
  _store(tmp_path).put(SPEC, {"bits": {"a": (4, 8)}})
  again = _store(tmp_path)
  turned = dict(reversed(list(SPEC.items())))
  assert again.get(turned) == {"bits": {"a": [4, 8]}}
  assert again.get(SPEC | {"seed": 1}) is None


def test_another_process_is_seen(tmp_path):
  first, second = _store(tmp_path), _store(tmp_path)
  second.put(SPEC, {"seconds": 1.5})
  assert first.get(SPEC) == {"seconds": 1.5}


def test_an_archive_alone_is_enough(tmp_path):
  store = _store(tmp_path)
  store.put(SPEC, {"seconds": 1.5})
  store.put(SPEC | {"seed": 1}, {"seconds": 2.5})
  store.write_archive()
  elsewhere = cells.Store(tmp_path / "new", tmp_path / "results.jsonl")
  assert elsewhere.get(SPEC) == {"seconds": 1.5}
  # What it knew stays in it.
  elsewhere.put(SPEC | {"seed": 2}, {"seconds": 3.5})
  elsewhere.write_archive()
  assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (lambda c: c["value"].update(seconds=1.0), "was edited"),
    (lambda c: c["spec"].update(seed=7), "was edited"),
    (lambda c: c.update(version=0), "of version 0"),
    (lambda c: c.pop("sha256"), "is no cell"),
  ],
)
def test_a_cell_that_was_edited_is_named(tmp_path, change, said):
  _store(tmp_path).put(SPEC, {"seconds": 1.5})
  (path,) = (tmp_path / "cells").glob("*.json")
  cell = json.loads(path.read_text())
  change(cell)
  path.write_text(json.dumps(cell))
  with pytest.raises(cells.CellError, match=f"{path.name}.*{said}.*expected"):
    _store(tmp_path)


def test_a_line_of_an_archive_that_is_cut_is_named(tmp_path):
  store = _store(tmp_path)
  store.put(SPEC, {"seconds": 1.5})
  store.write_archive()
  path = tmp_path / "results.jsonl"
  path.write_text(path.read_text()[:50])
  with pytest.raises(cells.CellError, match="jsonl, line 1 is no cell"):
    _store(tmp_path)


def test_a_disk_that_is_full_keeps_finished_cells(tmp_path, monkeypatch):
  store = _store(tmp_path)
  store.put(SPEC, {"seconds": 1.5})

  def full(path, text):
    raise OSError(errno.ENOSPC, "No space left on device", str(path))

  with monkeypatch.context() as patch:
    patch.setattr(files, "write_text_atomic", full)
    with pytest.raises(cells.CellError, match=r"No space.*1 cells before it"):
      store.put(SPEC | {"seed": 1}, {"seconds": 2.5})
  again = _store(tmp_path)
  assert again.get(SPEC) == {"seconds": 1.5}
  assert again.get(SPEC | {"seed": 1}) is None


@pytest.mark.parametrize("images", [1, 8, 13])
def test_flags_of_images_come_back(images):
  flags = np.random.default_rng(images).random(images) < 0.5
  value = {"images": images, "hits": cells.pack(flags)}
  np.testing.assert_array_equal(cells.unpack(value, "hits"), flags)
