"""Between a policy and a deployed model: one clear error, nothing written."""

import dataclasses
import importlib.util
import pathlib
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from flax import nnx
from refusals import names_in, refused
from tiny_runs import leave_search, leave_training, three_digits

import asga_jax
from asga_jax import data as data_lib
from asga_jax import evaluate
from asga_jax.data import embedded
from asga_jax.deploy import formats as export_formats
from asga_jax.runs import evaluate as evaluate_run
from asga_jax.runs import export as export_run
from asga_jax.runs import finetune as finetune_run
from asga_jax.runs import read, report
from asga_jax.training import loop
from asga_jax.weights import files as weight_files
from asga_jax.weights import load as pretrained

pytestmark = pytest.mark.usefixtures("tiny_model", "three")


@pytest.fixture(scope="module")
def three():
  known = {**embedded.SOURCES, "three": three_digits}
  with mock.patch.object(embedded, "SOURCES", known):
    yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny_model, make_tiny):
  """The work directory of a search."""
  return leave_search(tmp_path_factory.mktemp("searched"), make_tiny())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, searched, make_tiny):
  """The work directory of a fine-tuning of its policy."""
  directory = tmp_path_factory.mktemp("tuned")
  return leave_training(directory, _of_tuned(make_tiny(), searched))


@pytest.fixture(scope="module")
def tuned_to_three(tmp_path_factory, three, searched, make_tiny):
  """The same on three classes."""
  config = _of_tuned(make_tiny(), searched)
  config.data.name = "three"
  config.weights.skip = ("head/.*",)
  return leave_training(tmp_path_factory.mktemp("three"), config)


def _of_tuned(config, searched):
  config.finetune.policy = str(searched / "policy.json")
  config.finetune.start_from = str(searched)
  return config


def _copy(directory, place):
  shutil.copytree(directory, place)
  return place


@pytest.mark.slow
def test_a_run_that_lost_its_policy_is_told_so(tuned, tmp_path):
  copy = _copy(tuned, tmp_path / "copy")
  (copy / "policy.json").unlink()
  for reader in (evaluate_run.evaluate_run, read.read_trained):
    with refused(r"policy\.json: cannot be read as a policy file"):
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
  before = names_in(copy)
  named = r"copy/checkpoints (are damaged|holds no checkpoint that is whole)"
  with refused(named):
    evaluate_run.evaluate_run(copy)
  tiny_config.finetune.policy = str(searched / "policy.json")
  tiny_config.finetune.start_from = str(copy)
  with refused(named):
    finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  with pytest.raises(ValueError, match=named):
    read.read_search(copy)
  assert names_in(copy) == before
  assert names_in(tmp_path) == ["copy"]


@pytest.mark.slow
def test_no_whole_checkpoint_to_go_on_from(
  tiny_config, searched, tuned, tmp_path
):
  copy = _copy(tuned, tmp_path / "copy")
  (copy / "summary.json").unlink()
  for checkpoint in (copy / "checkpoints").iterdir():
    _cut_data(checkpoint)
  weights = (copy / "weights.safetensors").read_bytes()
  with refused("all 2 checkpoints in .* are damaged; restore them"):
    finetune_run.run_finetuning(_of_tuned(tiny_config, searched), copy)
  assert (copy / "weights.safetensors").read_bytes() == weights
  assert not (copy / "summary.json").exists()


def test_cut_weights_of_a_run(tiny_config, tuned, tmp_path):
  copy = _copy(tuned, tmp_path / "copy")
  file = copy / "weights.safetensors"
  file.write_bytes(file.read_bytes()[:-9])
  named = r"copy/weights\.safetensors cannot be read"
  with refused(named):
    evaluate_run.evaluate_run(copy)
  with refused(named):
    evaluate_run.evaluate_run(tuned, compare=[str(copy)])
  tiny_config.finetune.start_from = str(copy)
  with refused(named) as caught:
    finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  # What is damaged is of no other head.
  assert "skip" not in str(caught.value)
  file.unlink()
  with refused(r"copy/weights\.safetensors do not exist; expected"):
    evaluate_run.evaluate_run(copy)
  assert names_in(tmp_path) == ["copy"]


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
  with refused(r"cut\.safetensors cannot be read"):
    finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  with refused(r"cut\.safetensors cannot be read"):
    evaluate_run.evaluate_run(tuned, compare=[str(file)])
  assert names_in(tmp_path) == ["cut.safetensors"]


def test_quantized_weights_are_not_compared_as_float(tuned):
  with refused("expected the float weights of tiny for the 10 classes"):
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
    with refused(rf"{name} has {classes} classes.*skip=\"\('head/\.\*',\)"):
      finetune_run.run_finetuning(config, tmp_path / "run")
  assert names_in(tmp_path) == []


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
  with refused(r"head/bias: found \[3\], expected \[10\]"):
    finetune_run.run_finetuning(tiny_config, tmp_path / "run")
  with refused("expected the float weights of tiny for the 10 classes"):
    evaluate_run.evaluate_run(tuned, compare=[str(file)])
  assert names_in(tmp_path) == ["three.safetensors"]


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["evaluation-test.json", "confusion-test.png"])
def test_an_evaluation_that_cannot_be_written(tuned, tmp_path, name):
  copy = _copy(tuned, tmp_path / "copy")
  (copy / name).mkdir()
  before = names_in(copy)
  with refused(f"a directory, not a file: .*{name}", OSError):
    evaluate_run.evaluate_run(copy)
  assert names_in(copy) == before


def test_a_report_that_cannot_be_written(searched, tmp_path):
  for place in (tmp_path, tmp_path / "nowhere" / "page.html"):
    with pytest.raises(OSError, match=f"cannot be written.*{place.name}"):
      report.write_report([searched], place)
  assert names_in(tmp_path) == []


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
  assert names_in(tmp_path) == []


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
