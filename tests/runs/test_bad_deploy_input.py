"""Between a policy and a deployed model: one clear error, nothing written."""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from flax import nnx

import asga_jax
from asga_jax import conversion, evaluate, files
from asga_jax import data as data_lib
from asga_jax import policy as policy_lib
from asga_jax.data import embedded
from asga_jax.deploy import formats as export_formats
from asga_jax.runs import (
  checkpoints,
  finetune_start,
  read,
  report,
  workdir,
)
from asga_jax.runs import config as config_lib
from asga_jax.runs import evaluate as evaluate_run
from asga_jax.runs import export as export_run
from asga_jax.runs import finetune as finetune_run
from asga_jax.runs import search as search_run
from asga_jax.training import loop
from asga_jax.weights import files as weight_files
from asga_jax.weights import load as pretrained

pytestmark = pytest.mark.usefixtures("tiny_model", "three")


def _three():
  """Digits 0 to 2."""
  whole = embedded.digits()
  parts = {}
  for part in ("train", "test"):
    labels = getattr(whole, f"{part}_labels")
    parts[f"{part}_images"] = getattr(whole, f"{part}_images")[labels < 3]
    parts[f"{part}_labels"] = labels[labels < 3]
  return data_lib.Dataset(
    name="three", class_names=("a", "b", "c"), flip=False, **parts
  )


@pytest.fixture(scope="module")
def three():
  known = {**embedded.SOURCES, "three": _three}
  with mock.patch.object(embedded, "SOURCES", known):
    yield


# Work directories as runs leave them: nothing is compiled for them.


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny_model, make_tiny):
  """The work directory of a search."""
  directory = tmp_path_factory.mktemp("searched")
  config = config_lib.of_search(make_tiny())
  dataset = data_lib.load("digits")
  splits = data_lib.split_proxy(dataset, heldout_fraction=0.0, seed=0)
  made = search_run.set_ranges(
    config, search_run.build_search(config, dataset.info), dataset, splits
  )
  _keep(directory, config, made.state, {"proxy": "digits", "num_classes": 10})
  found = read.end_search(config, made, made.state, "digits")
  policy_lib.save(asga_jax.allocate(found), directory / "policy.json")
  return directory


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, searched, make_tiny):
  """The work directory of a fine-tuning of its policy."""
  directory = tmp_path_factory.mktemp("tuned")
  return _tune(directory, _of_tuned(make_tiny(), searched))


@pytest.fixture(scope="module")
def tuned_to_three(tmp_path_factory, three, searched, make_tiny):
  """The same on three classes."""
  config = _of_tuned(make_tiny(), searched)
  config.data.name = "three"
  config.weights.skip = ("head/.*",)
  return _tune(tmp_path_factory.mktemp("three"), config)


def _of_tuned(config, searched):
  config.finetune.policy = str(searched / "policy.json")
  config.finetune.start_from = str(searched)
  return config


def _tune(directory, config):
  config = config_lib.of_finetune(config)
  dataset = data_lib.load(config.data.name)
  split = data_lib.Split(dataset.train_images, dataset.train_labels)
  policy = finetune_start.read_policy(config)
  made = finetune_run.build_finetuning(config, policy, dataset, split)
  model = finetune_run.finetune.trained_model(made, made.state)
  pretrained.save_weights(model, directory / "weights.safetensors")
  policy_lib.save(policy, directory / "policy.json")
  _keep(directory, config, made.state, {"classes": dataset.num_classes})
  return directory


def _keep(directory, config, state, known):
  """Writes what both kinds of run leave."""
  workdir.open_workdir(directory, config)
  with checkpoints.Checkpoints(directory / "checkpoints") as kept:
    for step in (2, 4):
      kept.save(step, state, metadata=known)
  numbers = {k: v for k, v in known.items() if k == "classes"}
  (directory / "summary.json").write_text(json.dumps(numbers))


@contextlib.contextmanager
def _refused(named, error=ValueError):
  """Expects an error before anything is trained or evaluated."""
  with (
    mock.patch.object(loop, "run", side_effect=AssertionError),
    mock.patch.object(evaluate, "evaluate", side_effect=AssertionError),
    pytest.raises(error, match=named) as caught,
  ):
    yield caught


def _copy(directory, place):
  shutil.copytree(directory, place)
  return place


def _names(directory):
  return sorted(path.name for path in directory.iterdir())


# Policies.


def _change(searched, tmp_path, change):
  written = json.loads((searched / "policy.json").read_text())
  change(written)
  path = tmp_path / "policy.json"
  path.write_text(json.dumps(written))
  return path


@pytest.mark.parametrize("kind", ["weight_bits", "activation_bits"])
@pytest.mark.parametrize(
  "bits", [1, 0, -4, 9, 16, 33, 4.0, "4", True, None, 10**30]
)
def test_bits_outside_the_accepted_are_named(searched, tmp_path, kind, bits):
  path = _change(
    searched, tmp_path, lambda x: x["layers"]["inner"].update({kind: bits})
  )
  with pytest.raises(policy_lib.PolicyError) as caught:
    asga_jax.load_policy(path)
  told = str(caught.value)
  assert f"'inner': {kind} = {bits!r}: expected an integer in 2..8" in told
  assert str(path) in told


def _lose(layers):
  del layers["inner"]


def _add(layers):
  layers["more"] = layers["inner"]


def _rename(layers):
  layers["renamed"] = layers.pop("inner")


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (_lose, r"it lacks the layers \['inner'\]; expected"),
    (_add, r"it has the unknown layers \['more'\]; expected"),
    (_rename, r"lacks .*\['inner'\] and has .*\['renamed'\]; expected"),
  ],
)
def test_a_policy_of_other_layers_names_its_file(
  tiny_config, searched, tmp_path, change, named
):
  path = _change(searched, tmp_path, lambda x: change(x["layers"]))
  tiny_config.finetune.policy = str(path)
  with _refused(named, policy_lib.PolicyError) as caught:
    finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  assert str(path) in str(caught.value)
  assert _names(tmp_path) == ["policy.json"]


@pytest.mark.parametrize("change", [_lose, _add, _rename])
def test_in_python_too(
  tiny_network, tiny_searchable, tiny_batches, searched, change
):
  policy = asga_jax.load_policy(searched / "policy.json")
  layers = dict(policy.layers)
  change(layers)
  other = dataclasses.replace(policy, layers=layers)
  wrong = "more" if change is _add else "inner"
  with pytest.raises(ValueError, match=f"'{wrong}'"):
    conversion.quantize(tiny_network, tiny_batches[0]["image"], other)
  with pytest.raises(ValueError, match=f"'{wrong}'"):
    asga_jax.with_policy(tiny_searchable, other)


def test_of_many_other_layers_the_first_are_told(tiny_network, searched):
  policy = asga_jax.load_policy(searched / "policy.json")
  one = policy.layers["inner"]
  other = dataclasses.replace(policy, layers={str(n): one for n in range(40)})
  with pytest.raises(ValueError, match=r"'0', .* '4'\] and 35 more; expected"):
    conversion.check_policy(tiny_network, other, (8, 8, 1))


def test_a_policy_is_a_file(tiny_config, tmp_path):
  for given in (str(tmp_path), str(tmp_path / "nowhere.json"), "16bit"):
    tiny_config.finetune.policy = given
    with _refused(rf"{given}'; expected the path .*'2bit' to '8bit'"):
      finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  assert _names(tmp_path) == []


def test_a_run_that_lost_its_policy_is_told_so(tuned, tmp_path):
  copy = _copy(tuned, tmp_path / "copy")
  (copy / "policy.json").unlink()
  for reader in (evaluate_run.evaluate_run, read.read_trained):
    with _refused(r"policy\.json: cannot be read as a policy file"):
      reader(copy)


# Checkpoints and weights.


def _cut_data(checkpoint):
  for file in checkpoint.rglob("d/*"):
    file.write_bytes(file.read_bytes()[:50])


def _cut_index(checkpoint):
  for file in (checkpoint / "index").glob("metadata*"):
    file.write_bytes(file.read_bytes()[:3])


def _lose_manifest(checkpoint):
  for file in checkpoint.rglob("manifest.ocdbt"):
    file.unlink()


def _lose_state(checkpoint):
  shutil.rmtree(checkpoint / "state")


DAMAGES = [_cut_data, _cut_index, _lose_manifest, _lose_state]


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_whole_checkpoint_of_a_search(
  tiny_config, searched, tmp_path, damage
):
  copy = _copy(searched, tmp_path / "copy")
  for checkpoint in (copy / "checkpoints").iterdir():
    damage(checkpoint)
  before = _names(copy)
  named = r"copy/checkpoints (are damaged|holds no checkpoint that is whole)"
  with _refused(named):
    evaluate_run.evaluate_run(copy)
  tiny_config.finetune.policy = str(searched / "policy.json")
  tiny_config.finetune.start_from = str(copy)
  with _refused(named):
    finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  with pytest.raises(ValueError, match=named):
    read.read_search(copy)
  assert _names(copy) == before
  assert _names(tmp_path) == ["copy"]


def test_no_whole_checkpoint_to_go_on_from(
  tiny_config, searched, tuned, tmp_path
):
  copy = _copy(tuned, tmp_path / "copy")
  (copy / "summary.json").unlink()
  for checkpoint in (copy / "checkpoints").iterdir():
    _cut_data(checkpoint)
  weights = (copy / "weights.safetensors").read_bytes()
  with _refused("all 2 checkpoints in .* are damaged; restore them"):
    finetune_run.run_finetuning(_of_tuned(tiny_config, searched), copy)
  assert (copy / "weights.safetensors").read_bytes() == weights
  assert not (copy / "summary.json").exists()


def test_a_file_in_the_place_of_the_checkpoints(tiny_config, tmp_path):
  (tmp_path / "checkpoints").touch()
  with _refused(r"checkpoints is no directory; expected the checkpoints"):
    finetune_run.run_finetuning(tiny_config, tmp_path)
  assert _names(tmp_path) == ["checkpoints"]


def test_cut_weights_of_a_run(tiny_config, tuned, tmp_path):
  copy = _copy(tuned, tmp_path / "copy")
  file = copy / "weights.safetensors"
  file.write_bytes(file.read_bytes()[:-9])
  named = r"copy/weights\.safetensors cannot be read"
  with _refused(named):
    evaluate_run.evaluate_run(copy)
  with _refused(named):
    evaluate_run.evaluate_run(tuned, compare=[str(copy)])
  tiny_config.finetune.start_from = str(copy)
  with _refused(named) as caught:
    finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  # What is damaged is of no other head.
  assert "skip" not in str(caught.value)
  file.unlink()
  with _refused(r"copy/weights\.safetensors do not exist; expected"):
    evaluate_run.evaluate_run(copy)
  assert _names(tmp_path) == ["copy"]


@pytest.mark.parametrize("teacher", [False, True])
def test_a_cut_file_of_weights(tiny_config, tuned, tmp_path, teacher):
  whole = (tuned / "weights.safetensors").read_bytes()
  file = tmp_path / "cut.safetensors"
  file.write_bytes(whole[: len(whole) // 2])
  if teacher:
    tiny_config.finetune.distillation.weight = 0.5
    tiny_config.finetune.distillation.path = str(file)
  else:
    tiny_config.weights.path = str(file)
  with _refused(r"cut\.safetensors cannot be read"):
    finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  with _refused(r"cut\.safetensors cannot be read"):
    evaluate_run.evaluate_run(tuned, compare=[str(file)])
  assert _names(tmp_path) == ["cut.safetensors"]


def test_quantized_weights_are_not_compared_as_float(tuned):
  with _refused("expected the float weights of tiny for the 10 classes"):
    evaluate_run.evaluate_run(
      tuned, compare=[str(tuned / "weights.safetensors")]
    )


# Classes.


def test_weights_of_other_classes_both_ways(
  tiny_config, searched, tuned, tuned_to_three, tmp_path
):
  for source, name, classes in (
    (tuned, "three", 3),
    (tuned_to_three, "digits", 10),
  ):
    config = _of_tuned(tiny_config, searched)
    config.finetune.start_from = str(source)
    config.data.name = name
    with _refused(rf"{name} has {classes} classes.*skip=\"\('head/\.\*',\)"):
      finetune_run.run_finetuning(config, tmp_path / "run")
  assert _names(tmp_path) == []


def test_float_weights_of_other_classes(
  tiny_config, tuned, tuned_to_three, tmp_path
):
  file = tmp_path / "three.safetensors"
  network = read.read_trained(tuned_to_three).model
  kinds = (nnx.Param, nnx.BatchStat)
  arrays = pretrained.variables_of(network, only=kinds)
  weight_files.write(
    file, {k: a for k, a in arrays.items() if "/parameter" not in k}
  )
  tiny_config.finetune.distillation.weight = 0.5
  tiny_config.finetune.distillation.path = str(file)
  with _refused(r"head/bias: found \[3\], expected \[10\]"):
    finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  with _refused("expected the float weights of tiny for the 10 classes"):
    evaluate_run.evaluate_run(tuned, compare=[str(file)])
  assert _names(tmp_path) == ["three.safetensors"]


def test_labels_beyond_the_head(tiny_network):
  rng = np.random.default_rng(0)
  split = data_lib.Split(
    rng.normal(size=(9, 8, 8, 1)).astype(np.float32), np.arange(9) % 4
  )
  with pytest.raises(ValueError, match="labels from 0 to 3 and the network 3"):
    evaluate.evaluate(tiny_network, split, lambda _, batch: batch)
  batch = {"image": split.images, "label": split.labels}
  with pytest.raises(loop.DivergedError, match="labels below the number of"):
    asga_jax.train_policy(
      tiny_network, [batch], settings=asga_jax.FinetuneSettings(steps=1)
    )


# Where things are written.


@pytest.mark.parametrize("place", ["file", "file/below", "file/below/it"])
def test_a_file_where_the_work_directory_must_be(tiny_config, tmp_path, place):
  (tmp_path / "file").write_text("precious")
  with _refused("cannot be written to.*choose another with --workdir"):
    finetune_run.run_finetuning(tiny_config, tmp_path / place)
  assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["evaluation-test.json", "confusion-test.png"])
def test_an_evaluation_that_cannot_be_written(tuned, tmp_path, name):
  copy = _copy(tuned, tmp_path / "copy")
  (copy / name).mkdir()
  before = _names(copy)
  with _refused(f"a directory, not a file: .*{name}", OSError):
    evaluate_run.evaluate_run(copy)
  assert _names(copy) == before


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
  assert _names(tmp_path) == ["file"]


def test_a_report_that_cannot_be_written(searched, tmp_path):
  for place in (tmp_path, tmp_path / "nowhere" / "page.html"):
    with pytest.raises(OSError, match=f"cannot be written.*{place.name}"):
      report.write_report([searched], place)
  assert _names(tmp_path) == []


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
  assert _names(tmp_path) == ["there"]


# Operations.


class _Gamma(nnx.Module):
  def __call__(self, x):
    return jax.lax.lgamma(x)


class _Unknown(nnx.Module):
  def __init__(self, rngs):
    self.inner = nnx.Dict(gamma=_Gamma())
    self.head = nnx.Linear(3, 2, rngs=rngs)

  def __call__(self, x):
    return self.head(self.inner["gamma"](x).mean((1, 2)))


def test_an_operation_that_onnx_lacks_leaves_nothing(tmp_path, searched):
  policy = asga_jax.load_policy(searched / "policy.json")
  policy = dataclasses.replace(policy, layers={"head": policy.layers["head"]})
  model = asga_jax.searchable(_Unknown(nnx.Rngs(0)), np.ones((2, 4, 4, 3)))
  network = export_formats.Deployable(model, policy, (4, 4, 3), "unknown")
  with pytest.raises(ValueError, match=r"'lgamma' of layer 'inner/gamma'"):
    export_run.write_network(network, "onnx", tmp_path / "network.onnx")
  assert _names(tmp_path) == []


# The commands: one line, code 1.


@pytest.fixture(scope="module")
def script(script_flags):
  path = pathlib.Path(__file__).parents[2] / "launch" / "evaluate.py"
  spec = importlib.util.spec_from_file_location("evaluate_script", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_a_command_says_it_in_a_line(script, searched, tmp_path, caplog):
  copy = _copy(searched, tmp_path / "copy")
  for checkpoint in (copy / "checkpoints").iterdir():
    _cut_data(checkpoint)
  with flagsaver.flagsaver(), pytest.raises(SystemExit) as caught:
    script.main(flags.FLAGS(["evaluate", f"--workdir={copy}"]))
  assert caught.value.code == 1
  assert "CheckpointError: all 2 checkpoints" in caplog.messages[-1]
  assert "pybind" not in caplog.text
