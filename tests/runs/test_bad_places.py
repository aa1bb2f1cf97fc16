"""Places that cannot be written to are named before any work."""

import pathlib

import pytest
from refusals import names_in, refused

from asga_jax import files
from asga_jax.runs import export as export_run
from asga_jax.runs import finetune as finetune_run
from asga_jax.weights import load as pretrained

pytestmark = pytest.mark.usefixtures("tiny_model")


def test_a_file_in_the_place_of_the_checkpoints(tiny_config, tmp_path):
  (tmp_path / "checkpoints").touch()
  with refused(r"checkpoints is no directory; expected the checkpoints"):
    finetune_run.run_finetuning(tiny_config, tmp_path)
  assert names_in(tmp_path) == ["checkpoints"]


@pytest.mark.parametrize("place", ["file", "file/below", "file/below/it"])
def test_a_file_where_the_work_directory_must_be(tiny_config, tmp_path, place):
  (tmp_path / "file").write_text("precious")
  with refused("cannot be written to.*choose another with --workdir"):
    finetune_run.run_finetuning(tiny_config, tmp_path / place)
  assert (tmp_path / "file").read_text() == "precious"


def test_a_read_only_place_is_named_before_and_after(tmp_path, monkeypatch):
  path = tmp_path / "nowhere" / "a.json"
  with pytest.raises(FileNotFoundError, match=r"nowhere/a\.json'$"):
    files.check_writable(path)
  with pytest.raises(FileNotFoundError, match=r"nowhere/a\.json'$"):
    files.write_text_atomic(path, "")
  (tmp_path / "file").touch()
  with pytest.raises(NotADirectoryError, match=r"file/a\.json'$"):
    files.write_text_atomic(tmp_path / "file" / "a.json", "")

  def refuse(*_, **__):
    raise OSError(30, "Read-only file system")

  # The superuser may write anywhere: refuse in the system's stead.
  monkeypatch.setattr(pathlib.Path, "touch", refuse)
  with pytest.raises(OSError, match=r"Read-only file system: '.*/b\.json'$"):
    files.check_writable(tmp_path / "b.json")
  assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_orbax_writes_nothing_over(tiny_network, tmp_path, kind):
  path = tmp_path / "there"
  path.touch() if kind == "file" else path.mkdir()
  for write in (
    lambda: export_run.check_output("orbax", path),
    lambda: pretrained.save_orbax(tiny_network, path),
  ):
    with pytest.raises(FileExistsError, match="already; expected a new dir"):
      write()
  assert names_in(tmp_path) == ["there"]
