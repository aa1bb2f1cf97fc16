"""The search from the command line: resumed, finished, exported, refused."""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax import search_config, search_parts, search_run, search_start
from asga_jax.analysis import run_warnings
from asga_jax.cost import budget as budget_lib
from asga_jax.data import batches as batches_lib
from asga_jax.training import checkpoints, loop, metrics_log, tensorboard_log

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = (
  "--config=configs/resnet8.py",
  "--config.data.name=digits",
  "--config.data.image_size=8",
  "--config.data.pad=1",
  "--config.batch_size=16",
  "--config.eval_batch_size=50",
  "--config.report_batches=1",
  "--config.batch_norm_batches=1",
  "--config.checkpoint_every=3",
  "--config.bits=(2,4)",
)


pytestmark = pytest.mark.usefixtures("compiled_programs", "tiny_model")


@pytest.fixture
def config(tiny_config):
  return tiny_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_programs, tiny_model, make_tiny):
  """The work directory of a run that was not interrupted."""
  directory = tmp_path_factory.mktemp("whole")
  search_run.run(make_tiny(), directory)
  return directory


class KilledError(BaseException):
  """Stands for the end of the process: nothing catches it."""


def _contents(directory):
  return {
    path.relative_to(directory): path.read_bytes()
    for path in sorted(directory.rglob("*"))
    if path.is_file()
  }


def test_an_interrupted_run_ends_with_the_same_policy_byte_for_byte(
  config, whole, tmp_path
):
  cut = tmp_path / "cut"
  write = metrics_log.MetricsWriter.write

  def killed_in_step_six(self, records):
    write(self, records)
    if list(records)[-1]["step"] == 6:
      raise KilledError

  with (
    mock.patch.object(metrics_log.MetricsWriter, "write", killed_in_step_six),
    pytest.raises(KilledError),
  ):
    search_run.run(config, cut)
  assert not (cut / "policy.json").exists()
  assert checkpoints.latest_step(cut / "checkpoints") == 4
  resumed = search_run.run(config, cut)
  for name in ("policy.json", "metrics.jsonl", "summary.json"):
    assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
  assert resumed == search_run.run(config, whole)
  steps = [r["step"] for r in metrics_log.read_metrics(cut / "metrics.jsonl")]
  assert steps == [1, 2, 3, 4, 5, 6]
  names = {path.name for path in cut.iterdir()}
  assert names >= {"config.json", "checkpoints", "policy.png", "search.png"}
  # The report names the directory; nothing else in it may differ.
  page = (cut / "report.html").read_text().replace(str(cut), str(whole))
  assert page == (whole / "report.html").read_text()
  for path in json.loads((cut / "policy.json").read_text())["layers"]:
    assert path in page
  policy = json.loads((cut / "policy.json").read_text())
  assert policy["cost"]["budget_used"] <= 1
  assert policy["provenance"]["proxy"] == "digits"


def test_a_finished_run_prints_its_result_again(config, whole):
  before = _contents(whole)
  with mock.patch.object(
    search_run.search_start, "build", side_effect=AssertionError
  ):
    finished = search_run.run(config, whole)
  assert _contents(whole) == before
  text = search_run.format_result(finished)
  assert "middle" in text
  assert "policy accuracy" in text


def test_a_finished_run_does_not_need_its_report(config, whole, tmp_path):
  bare = tmp_path / "bare"
  shutil.copytree(whole, bare)
  (bare / "report.html").unlink()
  assert search_run.run(config, bare) == search_run.run(config, whole)


def test_warnings_are_logged_kept_and_printed(config, tmp_path, caplog):
  with (
    mock.patch.object(run_warnings, "HIGH_DISCRETISATION_GAP", -1.0),
    caplog.at_level("WARNING", logger="absl"),
  ):
    finished = search_run.run(config, tmp_path)
    page = (tmp_path / "report.html").read_text()
  kept = json.loads((tmp_path / "summary.json").read_text())["warnings"]
  assert kept == finished.summary["warnings"]
  (said,) = (text for text in kept if "below the mixture" in text)
  assert said in caplog.text
  assert said in page
  assert f"warning: {said}" in search_run.format_result(finished)


def test_events_for_tensorboard_hold_each_step_once(config, whole, tmp_path):
  steps = []
  read = metrics_log.read_metrics
  make = tensorboard_log.TensorBoardWriter

  class Recorded(make):
    def write(self, records):
      steps.extend((int(r["step"]), float(r["loss"])) for r in records)
      super().write(records)

  cut = tmp_path / "cut"
  write = metrics_log.MetricsWriter.write

  def killed_in_step_six(self, records):
    write(self, records)
    if list(records)[-1]["step"] == 6:
      raise KilledError

  with (
    mock.patch.object(metrics_log.MetricsWriter, "write", killed_in_step_six),
    pytest.raises(KilledError),
  ):
    search_run.run(config, cut, tensorboard=True)
  with mock.patch.object(tensorboard_log, "TensorBoardWriter", Recorded):
    search_run.run(config, cut, tensorboard=True)
    records = read(whole / "metrics.jsonl")
    expected = [(r["step"], r["loss"]) for r in records]
    np.testing.assert_allclose(steps, expected, rtol=1e-6)
    # Asked for after the end, they are made of the metrics file.
    steps.clear()
    shutil.rmtree(cut / "tensorboard")
    search_run.run(config, cut, tensorboard=True)
    np.testing.assert_allclose(steps, expected, rtol=1e-6)
  assert len(list((cut / "tensorboard").iterdir())) == 1


def test_a_missing_tensorboard_library_is_an_error_before_the_search(
  config, tmp_path
):
  with (
    mock.patch.object(importlib.util, "find_spec", return_value=None),
    pytest.raises(ValueError, match="pip install tensorboardX"),
  ):
    search_run.run(config, tmp_path / "run", tensorboard=True)
  assert not (tmp_path / "run").exists()


def test_restoring_falls_back_from_a_damaged_newest_checkpoint(whole, tmp_path):
  cut = tmp_path / "damaged"
  shutil.copytree(whole, cut)
  for file in (cut / "checkpoints" / "6" / "index").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  found = search_run.restore(cut)
  assert found.provenance["steps"] == 4


def test_restoring_gives_the_same_policy_and_other_budgets(
  config, whole, tmp_path
):
  found = search_run.restore(whole)
  asga_jax.save_policy(asga_jax.allocate(found), tmp_path / "policy.json")
  assert (tmp_path / "policy.json").read_bytes() == (
    whole / "policy.json"
  ).read_bytes()
  for budget in ("bops=3bit", "size=4bit", "bops=9%"):
    policy = asga_jax.allocate(found, budget=budget)
    assert policy.budget == budget
    assert policy.cost["budget_used"] <= 1
  with pytest.raises(budget_lib.InfeasibleBudgetError, match="lowest"):
    asga_jax.allocate(found, budget="bops=10")


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
  config, whole, tmp_path, caplog
):
  damaged = tmp_path / "damaged"
  shutil.copytree(whole, damaged)
  for name in ("policy.json", "summary.json"):
    (damaged / name).unlink()
  for path in (damaged / "checkpoints" / "6").rglob("*"):
    if path.is_file() and path.stat().st_size > 0:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with caplog.at_level("INFO", logger="absl"):
    search_run.run(config, damaged)
  assert "checkpoint of step 6 is damaged" in caplog.text
  assert "from the checkpoint of step 4" in caplog.text
  for name in ("policy.json", "metrics.jsonl"):
    original = (whole / name).read_bytes()
    assert (damaged / name).read_bytes() == original


def test_a_search_from_trained_weights_goes_on_without_their_file(
  config, tiny_network_class, tmp_path
):
  file = tmp_path / "weights.safetensors"
  network = tiny_network_class(10, 3, rngs=nnx.Rngs(5))
  asga_jax.save_weights(network, file)
  config.weights.path = str(file)
  config.search.steps = 3
  directory = tmp_path / "run"
  search_run.run(config, directory)
  policy = (directory / "policy.json").read_bytes()
  recorded = json.loads((directory / "config.json").read_text())
  assert recorded["weights"]["path"] == str(file)
  file.unlink()
  for name in ("policy.json", "summary.json"):
    (directory / name).unlink()
  shutil.rmtree(directory / "checkpoints" / "3")
  search_run.run(config, directory)
  assert (directory / "policy.json").read_bytes() == policy
  found = asga_jax.allocate(search_run.restore(directory))
  assert found.layers == asga_jax.load_policy(directory / "policy.json").layers
  with pytest.raises(ValueError, match=r"weights\.safetensors do not exist"):
    search_run.run(config, tmp_path / "another")
  assert not (tmp_path / "another").exists()


def test_the_directory_of_another_run_is_left_alone(config, whole):
  before = _contents(whole)
  config.search.seed = 7
  with pytest.raises(ValueError, match=r"search\.seed: 0 there, 7 now"):
    search_run.run(config, whole)
  assert _contents(whole) == before


def test_a_directory_without_a_search_cannot_be_restored(config, tmp_path):
  with pytest.raises(ValueError, match=r"config\.json cannot be read"):
    search_run.restore(tmp_path)
  (tmp_path / "config.json").write_text(config.to_json())
  with pytest.raises(ValueError, match="holds no checkpoint"):
    search_run.restore(tmp_path)


@pytest.mark.parametrize(
  ("key", "value", "named"),
  [
    ("search.preset", "asam", "asam"),
    ("search.steps", 0, "steps=0"),
    ("search.mode", "trilevel", "trilevel"),
    ("model", "resnet9", "resnet9"),
    ("bits", (), "bits"),
    ("bits", (2, 2), "2"),
    ("bits", (4, 9), "9"),
    ("budget", "bops", "bops"),
    ("budget", "bops=1", r"lowest reachable: \d"),
    ("data.name", "cifar10", r"cifar10.*no_such_place"),
    ("data.image_size", 4, "size is 4, and images are 8x8"),
    ("rules", ({"pattern": "stage9", "weight_bits": 4},), "stage9"),
    ("rules", ({"pattern": ".*", "bits": 4},), r"rules\[0\]"),
    ("batch_size", 0, "batch_size is 0"),
    ("weight_quantizer", "lsq9", "lsq9"),
    ("weights.path", "nowhere.safetensors", r"nowhere\.safetensors"),
    ("weights.name_map", "timm", r"weights\.path is empty.*'timm'"),
  ],
)
def test_a_bad_value_is_an_error_before_the_first_step(
  config, tmp_path, key, value, named
):
  if key == "data.name":
    config.data.dir = str(tmp_path / "no_such_place")
  config.update_from_flattened_dict({key: value})
  with (
    mock.patch.object(loop, "run", side_effect=AssertionError),
    pytest.raises(ValueError, match=named),
  ):
    search_run.run(config, tmp_path / "run")
  assert not (tmp_path / "run" / "policy.json").exists()
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_unknown_key_is_named_with_the_closest(config, tmp_path):
  with config.unlocked():
    config.search.stepz = 3
  with pytest.raises(ValueError, match=r"config\.search\.stepz .*steps"):
    search_run.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_named(config, tmp_path):
  tmp_path.chmod(0o500)
  try:
    with pytest.raises(ValueError, match="cannot be written to"):
      search_run.run(config, tmp_path)
  finally:
    tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_the_directory_is_named(config, tmp_path):
  (tmp_path / "file").write_text("mine")
  with pytest.raises(ValueError, match="cannot be written to"):
    search_run.run(config, tmp_path / "file")
  assert (tmp_path / "file").read_text() == "mine"


def test_the_state_is_that_of_a_network_made_with_the_images(config):
  dataset = search_run.data_lib.load("digits")
  splits = search_start.split(config, dataset)
  made = search_start.start(config, dataset, splits)
  raw = batches_lib.batch_at(
    splits.train, 0, batch_size=config.batch_size, seed=config.search.seed
  )
  plain = search_parts.make_prepare(config, dataset, train=False)
  images = plain(jax.random.key(0), raw)["image"]
  model = search_parts.make_searchable(config, dataset.num_classes, images)
  at_once = asga_jax.start_search(
    model, budget=config.budget, settings=made.settings
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    made.state._replace(key=0),
    at_once.state._replace(key=0),
  )
  signs = [c[1].min() for c in jax.tree.leaves(made.state.rest) if c.ndim == 2]
  assert {bool(sign < 0) for sign in signs} == {True, False}


def test_the_step_is_compiled_while_data_are_read(config, tmp_path):
  load, compiling = search_run.data_lib.load, jax.stages.Lowered.compile
  loaded = threading.Event()

  def load_then_tell(*args, **kwargs):
    dataset = load(*args, **kwargs)
    loaded.set()
    return dataset

  def compile_after_loading(self, *args, **kwargs):
    assert loaded.wait(60), "who compiles waits for data"
    return compiling(self, *args, **kwargs)

  with (
    mock.patch.object(search_run.data_lib, "load", load_then_tell),
    mock.patch.object(jax.stages.Lowered, "compile", compile_after_loading),
  ):
    search_run.run(config, tmp_path / "run")
  assert (tmp_path / "run" / "policy.json").exists()


def test_an_error_of_the_compiler_ends_the_run(config, tmp_path):
  error = RuntimeError("no memory for the program")
  with (
    mock.patch.object(jax.stages.Lowered, "compile", side_effect=error),
    pytest.raises(RuntimeError, match="no memory"),
  ):
    search_run.run(config, tmp_path / "run")


def test_a_bilevel_search_runs_and_tells_of_small_parts(config, tmp_path):
  config.search.update(mode="bilevel", steps=2)
  finished = search_run.run(config, tmp_path / "run")
  assert finished.policy.provenance["mode"] == "bilevel"
  records = metrics_log.read_metrics(tmp_path / "run" / "metrics.jsonl")
  assert [record["step"] for record in records] == [1, 2]
  config.data.heldout_fraction = 0.01
  with pytest.raises(ValueError, match=r"batch_size is 16; expected 1 to \d+,"):
    search_run.run(config, tmp_path / "small")
  config.data.heldout_fraction = 1.0
  with pytest.raises(ValueError, match=r"heldout_fraction is 1\.0; .*below 1"):
    search_run.run(config, tmp_path / "all")
  assert not (tmp_path / "small").exists()


def test_data_that_turn_out_bad_do_not_claim_the_directory(config, tmp_path):
  error = search_run.data_lib.DataError("image 7 is not like the first")
  with (
    mock.patch.object(search_run.data_lib, "load", side_effect=error),
    pytest.raises(search_run.data_lib.DataError, match="image 7"),
  ):
    search_run.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_split_over_the_devices(config, tmp_path):
  mesh = mock.Mock(size=3)
  with (
    mock.patch.object(search_start.sharding, "data_mesh", return_value=mesh),
    pytest.raises(ValueError, match=r"batch_size=16 .* 3 devices"),
  ):
    search_run.run(config, tmp_path)


def test_a_search_that_diverges_names_step_and_checkpoint(config, tmp_path):
  config.search.preset = "sgd"
  config.search.learning_rate = 1e30
  config.flush_every = 1
  with pytest.raises(loop.DivergedError, match=r"of step \d is .*checkpoint"):
    search_run.run(config, tmp_path)
  assert not (tmp_path / "policy.json").exists()
  records = metrics_log.read_metrics(tmp_path / "metrics.jsonl")
  # The record of the bad step is kept, its figure as null.
  assert None in records[-1].values()


def test_rules_of_a_configuration_become_rules():
  config = ml_collections.ConfigDict(
    {"rules": ({"pattern": "a|b", "weight_bits": [2, 4], "tie": "weights"},)}
  )
  assert search_config.make_rules(config) == (
    asga_jax.Rule("a|b", weight_bits=(2, 4), tie="weights"),
  )


def test_prepared_images_are_normalised_and_augmented_only_in_training(
  config,
):
  dataset = search_run.data_lib.load("digits")
  raw = {
    "image": dataset.train_images[:4],
    "label": dataset.train_labels[:4],
  }
  key = jax.random.key(0)
  plain = search_parts.make_prepare(config, dataset, train=False)(key, raw)
  expected = (raw["image"] / 255.0 - dataset.mean[0]) / dataset.std[0]
  np.testing.assert_allclose(
    plain["image"], np.repeat(expected, 3, axis=3), atol=1e-5
  )
  trained = search_parts.make_prepare(config, dataset, train=True)(key, raw)
  assert trained["image"].shape == (4, 8, 8, 3)
  assert not jnp.allclose(trained["image"], plain["image"])
  np.testing.assert_array_equal(trained["label"], raw["label"])


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  """A function that starts a script, with one cache of compiled programs."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }

  def start(script, *arguments):
    return subprocess.Popen(
      [sys.executable, f"launch/{script}.py", *arguments],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  return start


def _output(process, code=0):
  output, _ = process.communicate(timeout=600)
  assert process.returncode == code, output
  return output


def test_bad_flags_end_with_a_message_and_an_exit_code(command, tmp_path):
  workdir = tmp_path / "run"
  search = ("search", *FLAGS, f"--workdir={workdir}")
  unknown = command(*search, "--config.stepz=3")
  malformed = command(*search, "--config.budget=bops=four")
  missing = command("export", f"--workdir={tmp_path / 'nowhere'}")
  output = _output(unknown, 1)
  assert "config.stepz is unknown; did you mean" in output or (
    "config.stepz is unknown; accepted" in output
  )
  assert "Traceback" not in output
  output = _output(malformed, 1)
  assert "bops=four" in output
  assert "Traceback" not in output
  output = _output(missing, 1)
  assert "nowhere" in output
  assert "Traceback" not in output
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_by_signal_nine_it_resumes_from_the_command_line(
  command, tmp_path
):
  flags = (*FLAGS, "--config.search.steps=60", "--config.flush_every=1")
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  _output(command("search", *flags, f"--workdir={whole}"))
  killed = command("search", *flags, f"--workdir={cut}")
  started = time.monotonic()
  while (checkpoints.latest_step(cut / "checkpoints") or 0) < 6:
    assert killed.poll() is None, killed.communicate()
    assert time.monotonic() < started + 500
    time.sleep(0.01)
  killed.send_signal(signal.SIGKILL)
  killed.communicate()
  assert killed.returncode == -signal.SIGKILL
  assert not (cut / "policy.json").exists()
  output = _output(command("search", *flags, f"--workdir={cut}"))
  assert "from the checkpoint of step" in output
  policy = (whole / "policy.json").read_bytes()
  assert (cut / "policy.json").read_bytes() == policy
  records = metrics_log.read_metrics(cut / "metrics.jsonl")
  assert [r["step"] for r in records] == list(range(1, 61))

  before = _contents(cut)
  output = _output(command("search", *flags, f"--workdir={cut}"))
  assert "has ended" in output
  assert "bops=4bit" in output
  assert _contents(cut) == before

  again = tmp_path / "again.json"
  _output(command("export", f"--workdir={cut}", f"--output={again}"))
  assert again.read_bytes() == policy
  _output(command("export", f"--workdir={cut}", "--budget=bops=3bit"))
  other = json.loads((cut / "policy-bops=3bit.json").read_text())
  assert other["budget"] == "bops=3bit"
  assert 0.9 < other["cost"]["budget_used"] <= 1
  assert (cut / "policy.json").read_bytes() == policy
