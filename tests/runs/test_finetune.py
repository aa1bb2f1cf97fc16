"""Fine-tuning from the command line: resumed, started, carried over."""

import functools
import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors import numpy as safetensors_numpy
from tiny_runs import MIXED, make_policy, start_training, three_digits

import asga_jax
from asga_jax import data as data_lib
from asga_jax import policy as policy_lib
from asga_jax.data import embedded
from asga_jax.quantization import layers
from asga_jax.runs import checkpoints, finetune_start, read, summary
from asga_jax.runs import evaluate as evaluate_run
from asga_jax.runs import finetune as finetune_run
from asga_jax.runs import metrics as metrics_log
from asga_jax.xla import ahead

pytestmark = pytest.mark.usefixtures("tiny_model")


class KilledError(BaseException):
  """Stands for the end of the process: nothing catches it."""


@pytest.fixture(autouse=True)
def other_data():
  known = {**embedded.SOURCES, "three": functools.partial(three_digits, 2)}
  with mock.patch.object(embedded, "SOURCES", known):
    yield


@pytest.fixture(scope="module")
def float_run(tmp_path_factory, tiny_model, make_tiny):
  """The work directory of the float network."""
  directory = tmp_path_factory.mktemp("float")
  config = make_tiny()
  config.finetune.steps = 150
  config.finetune.learning_rate = 0.1
  config.data.pad = 0
  config.checkpoint_every = config.flush_every = 150
  config.report_batches = 0
  finetune_run.run_finetuning(config, directory)
  return directory


def _taught(config, policy_file, float_run):
  """Uses all that a step may have."""
  config.finetune.policy = str(policy_file)
  config.finetune.ema_decay = 0.9
  config.finetune.label_smoothing = 0.1
  config.finetune.distillation.weight = 0.5
  config.finetune.distillation.path = str(float_run / "weights.safetensors")
  config.weights.path = str(float_run / "weights.safetensors")
  return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory, policy_file, float_run, make_tiny):
  """The work directory of a training that was not interrupted."""
  directory = tmp_path_factory.mktemp("whole")
  finetune_run.run_finetuning(
    _taught(make_tiny(), policy_file, float_run), directory
  )
  return directory


def _weights(directory):
  return safetensors_numpy.load_file(directory / "weights.safetensors")


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_weights(
  config, whole, policy_file, float_run, tmp_path
):
  _taught(config, policy_file, float_run)
  write = metrics_log.MetricsWriter.write

  def killed_in_step_six(self, records):
    write(self, records)
    if list(records)[-1]["step"] == 6:
      raise KilledError

  cut = tmp_path / "cut"
  with (
    mock.patch.object(metrics_log.MetricsWriter, "write", killed_in_step_six),
    pytest.raises(KilledError),
  ):
    finetune_run.run_finetuning(config, cut)
  assert not (cut / "summary.json").exists()
  assert checkpoints.latest_step(cut / "checkpoints") == 4
  resumed = finetune_run.run_finetuning(config, cut)
  for name in (
    "weights.safetensors",
    "weights_ema.safetensors",
    "metrics.jsonl",
    "summary.json",
    "policy.json",
  ):
    assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
  assert (cut / "finetune.png").exists()
  assert (whole / "finetune.png").stat().st_size > 10_000
  assert "policy.json" in (cut / "report.html").read_text()
  with mock.patch.object(
    finetune_run, "build_finetuning", side_effect=AssertionError
  ):
    assert finetune_run.run_finetuning(config, cut) == resumed
  text = summary.format_finetuning(resumed)
  assert "middle" in text
  assert "ema top1" in text


def test_the_average_is_other_than_the_last_weights(whole):
  raw, averaged = (
    safetensors_numpy.load_file(whole / name)["head/kernel"]
    for name in ("weights.safetensors", "weights_ema.safetensors")
  )
  assert not np.allclose(raw, averaged)
  start = _weights(whole)
  assert start.keys() >= {"middle/weight/parameter", "norm/mean"}


def test_the_trained_network_computes_at_the_bits_of_the_policy(whole):
  model = read.read_trained(whole).model
  model.eval()
  seen = {}
  for path, layer in layers.kernel_layers(model).items():

    def keep(x, w, path=path):
      seen[path] = np.asarray(x), np.asarray(w)

    def product(
      x, w, *args, keep=keep, product=layer.product.float_product, **kwargs
    ):
      jax.debug.callback(keep, x, w)
      return product(x, w, *args, **kwargs)

    layer.product.float_product = nnx.static(product)
  images = np.random.default_rng(0).normal(size=(64, 8, 8, 3))
  model(images.astype(np.float32))
  jax.effects_barrier()
  assert seen.keys() == MIXED.keys()
  for path, (inputs, kernel) in seen.items():
    weight_bits, activation_bits = MIXED[path]
    assert len(np.unique(inputs)) <= 2**activation_bits
    steps = np.asarray(
      layers.product_of(getattr(model, path)).weight.parameter[...]
    )[0]
    channels = kernel.reshape(-1, kernel.shape[-1]).T
    for channel, step in zip(channels, steps, strict=True):
      assert len(np.unique(channel)) <= 2**weight_bits - 1
      # On a grid: whole multiples of one step.
      codes = channel / step
      np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
  assert len(np.unique(seen["middle"][0])) > 4


def test_the_float_run_learns_and_its_weights_can_be_loaded(
  config, float_run, tiny_network_class
):
  summary = json.loads((float_run / "summary.json").read_text())
  # By chance it would be a half.
  assert summary["top5"] > 0.7
  assert summary["classes"] == 10
  assert not (float_run / "policy.json").exists()
  network = tiny_network_class(10, 3, rngs=nnx.Rngs(3))
  loaded = asga_jax.load_weights(network, float_run / "weights.safetensors")
  np.testing.assert_array_equal(
    loaded.middle.kernel[...], _weights(float_run)["middle/kernel"]
  )


def test_float_weights_come_in_and_steps_are_calibrated(
  config, float_run, policy_file
):
  config.weights.path = str(float_run / "weights.safetensors")
  config.finetune.policy = str(policy_file)
  model = start_training(config)
  for name, found in _weights(float_run).items():
    node = model
    for part in name.split("/"):
      node = getattr(node, part)
    np.testing.assert_array_equal(node[...], found)
  for path, (bits, _) in MIXED.items():
    layer = layers.kernel_layers(model)[path]
    assert layer.product.weight.candidates() == (bits,)
    kernel = np.asarray(layer.kernel_matrix())
    steps = np.asarray(layer.product.weight.parameter[...][0])
    limit = 2 ** (bits - 1) - 1

    def error(step, kernel=kernel, limit=limit):
      codes = np.clip(np.round(kernel / step), -limit, limit)
      return ((codes * step - kernel) ** 2).sum(axis=0)

    # A least-squares step is better than much larger or smaller ones.
    for factor in (0.5, 2.0):
      assert (error(steps) <= error(factor * steps) + 1e-7).all()


def test_steps_for_other_bits_are_calibrated(
  config, whole, policy_file, tmp_path
):
  other = {**MIXED, "middle": (4, 4)}
  policy_lib.save(make_policy(config, other), tmp_path / "other.json")
  config.finetune.start_from = str(whole)
  config.finetune.policy = str(tmp_path / "other.json")
  model, source = start_training(config), read.read_trained(whole).model
  for path in MIXED:
    for kind in ("weight", "activation"):
      found, trained = (
        getattr(layers.product_of(getattr(x, path)), kind).parameter[...]
        for x in (model, source)
      )
      same = (path, kind) != ("middle", "weight")
      assert np.array_equal(found, trained) == same, (path, kind)


@pytest.mark.slow
def test_a_policy_carries_over_to_another_head_and_resolution(
  config, policy_file, float_run, tmp_path
):
  config.data.name = "three"
  config.data.image_size = 16
  config.finetune.policy = str(policy_file)
  config.finetune.start_from = str(float_run)
  with pytest.raises(ValueError, match=r"3 classes.*skip=\"\('head/\.\*',\)"):
    finetune_run.run_finetuning(config, tmp_path)
  assert list(tmp_path.iterdir()) == []
  config.weights.skip = ("head/.*",)
  finished = finetune_run.run_finetuning(config, tmp_path)
  assert finished.summary["classes"] == 3
  model = read.read_trained(tmp_path).model
  assert model.head.kernel[...].shape == (5, 3)
  for path, bits in MIXED.items():
    layer = layers.product_of(getattr(model, path))
    found = layer.weight.candidates() + layer.activation.candidates()
    assert found == bits
  # Evaluated by its own data.
  report = evaluate_run.evaluate_run(tmp_path)
  assert report["class_names"] == ["a", "b", "c"]


def test_a_uniform_policy_costs_its_own_budget(config):
  policy = finetune_start.uniform_policy(config, 4)
  bits = {
    path: (layer.weight_bits, layer.activation_bits)
    for path, layer in policy.layers.items()
  }
  assert bits == {
    "first": (8, 8),
    "middle": (4, 4),
    "inner": (4, 4),
    "head": (8, 8),
  }
  macs = {"first": 8 * 8 * 108, "middle": 4 * 4 * 216, "inner": 30, "head": 50}
  assert policy.cost["bops"] == sum(
    macs[path] * pair[0] * pair[1] for path, pair in bits.items()
  )
  assert policy.cost["budget_used"] == 1
  config.rules = ({"pattern": "inner", "weight_bits": 2},)
  ruled = finetune_start.uniform_policy(config, 8)
  assert ruled.layers["inner"].weight_bits == 2


def test_a_run_that_has_not_ended_is_no_start(config, whole, tmp_path):
  (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
  config.finetune.start_from = str(tmp_path)
  with pytest.raises(ValueError, match="has not ended"):
    start_training(config)


def test_another_policy_does_not_go_on(config, whole, policy_file, tmp_path):
  config.finetune.policy = str(tmp_path / "policy.json")
  policy_lib.save(make_policy(config), tmp_path / "policy.json")
  directory = tmp_path / "run"
  with (
    mock.patch.object(ahead, "compile_step", side_effect=KilledError),
    pytest.raises(KilledError),
  ):
    finetune_run.run_finetuning(config, directory)
  policy_lib.save(
    make_policy(config, {**MIXED, "inner": (4, 4)}), tmp_path / "policy.json"
  )
  with pytest.raises(ValueError, match="is not that which the training"):
    finetune_run.run_finetuning(config, directory)


def test_evaluations_set_float_beside_quantized(config, whole, float_run):
  report = evaluate_run.evaluate_run(whole, compare=["float", str(float_run)])
  written = json.loads((whole / "evaluation-test.json").read_text())
  assert written == report
  assert list(report["networks"]) == [
    "quantized",
    "quantized, averaged",
    "its weights in float",
    str(float_run),
  ]
  total = len(data_lib.load("digits").test_labels)
  for figures in report["networks"].values():
    confusion = np.array(figures["confusion"])
    assert confusion.sum() == total == report["images"]
    assert np.trace(confusion) / total == pytest.approx(figures["top1"])
    assert figures["top1"] <= figures["top5"] <= 1
  assert (whole / "confusion-test.png").stat().st_size > 0
  text = evaluate_run.format_evaluation(report)
  assert f"{report['networks']['quantized']['top1']:.2%}" in text


def test_runs_on_other_data_cannot_be_compared(whole, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(whole, other)
  changed = json.loads((whole / "config.json").read_text())
  changed["data"]["image_size"] = 16
  (other / "config.json").write_text(json.dumps(changed))
  with pytest.raises(ValueError, match=r"digits at size 16.*at size 8"):
    evaluate_run.evaluate_run(whole, compare=[str(other)])


def test_a_damaged_summary_or_weights_file_is_named(whole, tmp_path):
  for name in ("config.json", "policy.json", "summary.json"):
    (tmp_path / name).write_bytes((whole / name).read_bytes())
  (tmp_path / "weights.safetensors").write_bytes(b"short")
  with pytest.raises(ValueError, match=r"weights\.safetensors cannot be read"):
    read.read_trained(tmp_path)
  (tmp_path / "summary.json").write_text("{")
  with pytest.raises(ValueError, match=r"summary\.json is damaged"):
    read.read_trained(tmp_path)
