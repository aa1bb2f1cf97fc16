import errno
import hashlib
import json
import os
import tempfile

import ml_collections
import pytest

from asga_jax import files
from asga_jax.runs import config as config_lib
from asga_jax.runs import workdir as workdir_lib

CONFIG = {"seed": 0, "bits": (2, 4), "data": {"name": "digits", "pad": 4.0}}
CANONICAL = '{"bits":[2,4],"data.name":"digits","data.pad":4,"seed":0}'


def test_hash_is_that_of_the_canonical_json():
  expected = hashlib.sha256(CANONICAL.encode()).hexdigest()
  assert workdir_lib.config_sha256(CONFIG) == expected
  same = {"data": {"pad": 4, "name": "digits"}, "bits": [2, 4.0], "seed": 0}
  assert workdir_lib.config_sha256(same) == expected
  config = ml_collections.ConfigDict(CONFIG)
  assert workdir_lib.config_sha256(config) == expected
  for other in ({**CONFIG, "seed": 1}, {**CONFIG, "seed": False}):
    assert workdir_lib.config_sha256(other) != expected


@pytest.mark.parametrize(
  ("name", "directory"),
  [
    ("mobilenetv2", "mobilenetv2"),
    ("configs/resnet18.py", "resnet18"),
    ("/a/configs/resnet18.py:cifar10", "resnet18-cifar10"),
    ("resnet18.py:a/b c=1", "resnet18-a_b_c_1"),
  ],
)
def test_default_workdir(name, directory):
  digits = hashlib.sha256(CANONICAL.encode()).hexdigest()[:8]
  path = workdir_lib.default_workdir(name, CONFIG)
  assert path.as_posix() == f"runs/{directory}-{digits}"


def test_open_creates_and_opens_again(tmp_path):
  path = tmp_path / "runs/a"
  assert workdir_lib.open_workdir(path, CONFIG) == path
  before = (path / "config.json").read_bytes()
  assert json.loads(before) == json.loads(json.dumps(CONFIG))
  (path / "metrics.jsonl").write_text("{}\n")
  workdir_lib.open_workdir(path, {**CONFIG, "bits": [2, 4]})
  assert (path / "config.json").read_bytes() == before
  assert sorted(p.name for p in path.iterdir()) == [
    "config.json",
    "metrics.jsonl",
  ]
  assert workdir_lib.read_config(path) == json.loads(before)


def test_a_run_of_before_there_was_a_setting_opens(tmp_path):
  data = {"name": "digits", "image_size": 8}
  workdir_lib.open_workdir(tmp_path / "a", {**CONFIG, "data": data})
  now = {**data, "crop": 1.0, "normalisation": "", "preset": "", "classes": 0}
  now |= {"stream": False, "workers": 0, "bad_images": 0}
  workdir_lib.open_workdir(tmp_path / "a", {**CONFIG, "data": now})
  assert workdir_lib.read_config(tmp_path / "a")["data"] == now
  with pytest.raises(workdir_lib.WorkdirError, match=r"data.crop: 1 there"):
    workdir_lib.open_workdir(
      tmp_path / "a", {**CONFIG, "data": {**now, "crop": 0.875}}
    )
  # Where images are decoded, and what may be skipped, decides no run.
  elsewhere = {**now, "workers": 3, "bad_images": 2}
  workdir_lib.open_workdir(tmp_path / "a", {**CONFIG, "data": elsewhere})


def test_a_search_of_before_there_was_a_float_training_had_none(tmp_path):
  search = {"mode": "joint", "steps": 3}
  workdir_lib.open_workdir(tmp_path, {"search": search})
  found = workdir_lib.read_config(tmp_path)
  assert found["pretrain"]["steps"] == 0
  assert (
    found["search"].items() >= {**search, "freeze_batch_norm": False}.items()
  )
  pretrain = {**found["pretrain"], "steps": 9}
  with pytest.raises(
    workdir_lib.WorkdirError, match=r"pretrain\.steps: 0 there, 9 now"
  ):
    workdir_lib.open_workdir(tmp_path, {**found, "pretrain": pretrain})
  # A fine-tuning has neither.
  workdir_lib.open_workdir(tmp_path / "tuned", {"finetune": {"steps": 3}})
  assert set(workdir_lib.read_config(tmp_path / "tuned")) == {"finetune"}


def test_a_quantization_of_before_there_was_a_curve_has_none(tmp_path):
  given = {"scored_batches": 1, "score": "kl"}
  workdir_lib.open_workdir(tmp_path, {"post_training": given})
  found = workdir_lib.read_config(tmp_path)
  assert found["post_training"] == {**given, "curve": []}
  workdir_lib.open_workdir(tmp_path, found)


def test_a_check_alone_creates_nothing(tmp_path):
  path = tmp_path / "runs/a"
  assert workdir_lib.open_workdir(path, CONFIG, write=False) == path
  (tmp_path / "file").touch()
  with pytest.raises(workdir_lib.WorkdirError, match="Not a directory"):
    workdir_lib.open_workdir(tmp_path / "file" / "a", CONFIG, write=False)
  assert [place.name for place in tmp_path.iterdir()] == ["file"]


def test_another_configuration_is_refused(tmp_path):
  workdir_lib.open_workdir(tmp_path, CONFIG)
  before = (tmp_path / "config.json").read_bytes()
  other = {"seed": 3, "bits": (2, 4), "data": {"name": "digits"}}
  with pytest.raises(workdir_lib.WorkdirError) as error:
    workdir_lib.open_workdir(tmp_path, other)
  message = str(error.value)
  assert "seed: 0 there, 3 now" in message
  assert "data.pad: 4 there, absent now" in message
  assert "bits" not in message
  assert "another --workdir" in message
  assert str(tmp_path) in message
  assert (tmp_path / "config.json").read_bytes() == before


def test_many_differences_are_cut_short(tmp_path):
  workdir_lib.open_workdir(tmp_path, {f"k{i:02}": i for i in range(20)})
  with pytest.raises(workdir_lib.WorkdirError, match="and 12 more"):
    workdir_lib.open_workdir(tmp_path, {f"k{i:02}": -1 for i in range(20)})


@pytest.mark.parametrize("text", ["", '{"seed": 0, "bi', "[1]", '{"a": NaN}'])
def test_a_damaged_config_is_an_error_and_stays(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(workdir_lib.WorkdirError, match=r"config\.json cannot be"):
    workdir_lib.open_workdir(tmp_path, CONFIG)
  assert (tmp_path / "config.json").read_text() == text


def test_no_config_is_an_error_to_read(tmp_path):
  with pytest.raises(workdir_lib.WorkdirError, match=r"config\.json cannot be"):
    workdir_lib.read_config(tmp_path)


def test_a_read_only_directory_is_named(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

  # The superuser may write to any directory: refuse in the system's stead.
  monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
  with pytest.raises(workdir_lib.WorkdirError, match="Read-only") as error:
    workdir_lib.open_workdir(tmp_path, CONFIG)
  assert str(tmp_path) in str(error.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
  os.geteuid() == 0, reason="the superuser may write anywhere"
)
def test_a_directory_without_write_permission(tmp_path):
  tmp_path.chmod(0o555)
  with pytest.raises(workdir_lib.WorkdirError, match="cannot be written"):
    workdir_lib.open_workdir(tmp_path, CONFIG)


def test_a_file_in_the_place_of_the_directory(tmp_path):
  (tmp_path / "file").write_text("precious")
  for path in (tmp_path / "file", tmp_path / "file/below"):
    with pytest.raises(workdir_lib.WorkdirError, match="cannot be written"):
      workdir_lib.open_workdir(path, CONFIG)
  assert (tmp_path / "file").read_text() == "precious"


def test_atomic_write_replaces_or_leaves(tmp_path, monkeypatch):
  path = tmp_path / "a.json"
  files.write_text_atomic(path, "first é")
  assert path.read_text(encoding="utf-8") == "first é"
  mask = os.umask(0o022)
  files.write_text_atomic(path, "second")
  os.umask(mask)
  assert path.stat().st_mode & 0o777 == 0o644

  def fail(_):
    raise OSError(errno.ENOSPC, "disk full")

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match="disk full"):
    files.write_text_atomic(path, "third")
  assert path.read_text() == "second"
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_run_from_before_steps_had_options_is_that_of_their_defaults(
  tmp_path, make_tiny
):
  config = config_lib.of_search(make_tiny())
  old = json.loads(config.to_json())
  del old["checkpoints"]
  for name in ("accumulate", "compute_dtype", "skip_nonfinite", "batch_norm"):
    del old["search"][name]
  (tmp_path / "config.json").write_text(json.dumps(old))
  workdir_lib.open_workdir(tmp_path, config)
  config.checkpoints.best = 1  # no other run
  workdir_lib.open_workdir(tmp_path, config)
  config.search.accumulate = 2
  with pytest.raises(workdir_lib.WorkdirError, match="accumulate: 1 there, 2"):
    workdir_lib.open_workdir(tmp_path, config)
