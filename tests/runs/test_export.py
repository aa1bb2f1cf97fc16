"""Networks of searches and fine-tunings as files: loaded again elsewhere."""

import dataclasses
import subprocess
import sys
import types

import jax
import numpy as np
import onnx
import pytest
from flax import nnx

import asga_jax
from asga_jax import evaluate
from asga_jax.deploy import formats as export_formats
from asga_jax.deploy.onnx import export as onnx_export
from asga_jax.quantization import layers
from asga_jax.runs import config as config_lib
from asga_jax.runs import data as run_data
from asga_jax.runs import export as export_run
from asga_jax.runs import finetune_start, measure, read, workdir

pytestmark = pytest.mark.usefixtures("tiny_model")


BITS = {"first": (8, 8), "middle": (3, 4), "inner": (2, 5), "head": (8, 8)}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tiny_model, make_tiny, tiny_network_class):
  """The work directory of a fine-tuning, as one leaves it."""
  directory = tmp_path_factory.mktemp("tuned")
  config = make_tiny()
  config.finetune.ema_decay = 0.9
  config.finetune.policy = str(directory / "policy.json")
  config = config_lib.of_finetune(config)
  workdir.open_workdir(directory, config)
  uniform = finetune_start.uniform_policy(config, 4)
  layers = {
    path: dataclasses.replace(
      layer, weight_bits=pair[0], activation_bits=pair[1]
    )
    for (path, pair), layer in zip(
      BITS.items(), uniform.layers.values(), strict=True
    )
  }
  policy = dataclasses.replace(uniform, layers=layers)
  asga_jax.save_policy(policy, directory / "policy.json")
  data = run_data.of_run(directory)
  raw = {"image": data.parts["train"].images[:64]}
  images = data.prepare(jax.random.key(0), raw)["image"]
  network = tiny_network_class(10, 3, rngs=nnx.Rngs(0))
  model = asga_jax.quantize(network, images, policy)
  run_data.settle(model, data)
  asga_jax.save_weights(model, directory / read.WEIGHTS)
  model.head.bias[...] += 1
  asga_jax.save_weights(model, directory / read.AVERAGED_WEIGHTS)
  (directory / "summary.json").write_text('{"classes": 10}')
  return directory


@pytest.fixture(scope="module")
def data(tuned):
  return run_data.of_run(tuned)


@pytest.fixture(scope="module")
def network(tuned):
  return export_run.from_finetune(read.read_trained(tuned))


@pytest.fixture(scope="module")
def written(network, tmp_path_factory):
  """Every format of the fine-tuned network."""
  directory = tmp_path_factory.mktemp("files")
  found = {}
  for name, kind in export_formats.FORMATS.items():
    found[name] = directory / f"network{kind.suffix}"
    said = export_run.write_network(network, name, found[name])
    size = export_formats.file_bytes(found[name])
    assert said.endswith(f"written to {found[name]}: {size} bytes")
  return found


@pytest.fixture(scope="module")
def images(data):
  raw = {"image": data.parts["test"].images[:20]}
  return np.asarray(data.prepare(jax.random.key(0), raw)["image"])


@pytest.fixture(scope="module")
def logits(network, images):
  network.model.eval()
  return np.asarray(network.model(images))


@pytest.mark.slow
def test_an_orbax_export_goes_on_in_a_network_made_anew(
  network, written, tiny_network_class, images, logits
):
  fresh = asga_jax.quantize(
    tiny_network_class(10, 3, rngs=nnx.Rngs(7)), 3 * images, network.policy
  )
  fresh.eval()
  assert not np.allclose(fresh(images), logits)
  loaded = asga_jax.load_weights(fresh, written["orbax"])
  np.testing.assert_array_equal(loaded(images), logits)


@pytest.mark.slow
def test_stablehlo_runs_where_asga_jax_is_not(written, images, logits):
  script = """
import sys
sys.modules["asga_jax"] = sys.modules["flax"] = None
import jax, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[3], program.call(np.load(sys.argv[2])))
"""
  folder = written["stablehlo"].parent
  np.save(folder / "images.npy", images)
  files = [written["stablehlo"], folder / "images.npy", folder / "logits.npy"]
  subprocess.run(
    [sys.executable, "-c", script, *map(str, files)], cwd=folder, check=True
  )
  np.testing.assert_allclose(np.load(files[2]), logits, rtol=0, atol=1e-5)


def test_onnx_and_packed_files_compute_the_same(
  network, written, images, logits
):
  for name in ("onnx", "packed"):
    found = export_formats.FORMATS[name].run(network, written[name])(images)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5)
  metadata = {
    entry.key: entry.value
    for entry in onnx.load(written["onnx"]).metadata_props
  }
  assert '"inner"' in metadata[onnx_export.POLICY_KEY]


def test_batch_norm_of_a_search_is_that_of_its_policy(
  tiny_searchable, network, data
):
  # Of all that a search found, its network counts; it sees one channel.
  found = types.SimpleNamespace(model=tiny_searchable)
  policy = dataclasses.replace(
    network.policy,
    layers={
      path: dataclasses.replace(layer, weight_bits=8, activation_bits=8)
      for path, layer in network.policy.layers.items()
    },
  )
  data = data._replace(
    prepare=lambda key, raw: {"image": raw["image"].astype(np.float32) / 9}
  )
  exported = export_run.from_search(found, policy, data)
  assert (exported.name, exported.input_shape) == ("tiny", (8, 8, 3))
  model = exported.model
  (inputs,) = evaluate.norm_inputs(
    data.parts["train"], data.prepare, batch_size=50, batches=1, seed=0
  )
  seen = np.asarray(model.first(inputs))
  np.testing.assert_allclose(
    model.norm.mean[...], seen.mean(axis=(0, 1, 2)), atol=1e-5
  )
  np.testing.assert_allclose(
    model.norm.var[...], seen.var(axis=(0, 1, 2)), rtol=1e-4
  )
  # The search's own stays.
  assert not np.any(found.model.norm.mean[...])


def test_the_average_is_taken_where_it_is_asked_for(tuned):
  trained = read.read_trained(tuned)
  averaged = export_run.from_finetune(trained, averaged=True)
  kept = averaged.model.head.bias[...] - trained.model.head.bias[...]
  np.testing.assert_allclose(kept, 1)
  with pytest.raises(ValueError, match="ema_decay is 0"):
    export_run.from_finetune(trained._replace(averaged=None), averaged=True)


def test_an_orbax_checkpoint_is_replaced_and_nothing_else(
  network, written, tmp_path, images, logits
):
  output = tmp_path / "network.orbax"
  output.mkdir()
  (output / "mine.txt").write_text("kept")
  with pytest.raises(FileExistsError, match="there already"):
    export_run.write_network(network, "orbax", output)
  assert (output / "mine.txt").read_text() == "kept"
  output = tmp_path / "again.orbax"
  shifted = nnx.clone(network.model)
  shifted.head.bias[...] += 1
  for model in (shifted, network.model):
    export_run.write_network(network._replace(model=model), "orbax", output)
  run = export_formats.FORMATS["orbax"].run(network, output)
  np.testing.assert_allclose(run(images), logits, rtol=0, atol=1e-5)
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ["again.orbax", "network.orbax"]


def test_what_cannot_be_packed(network, tmp_path):
  with pytest.raises(ValueError, match=r"expected one that ends in \.safeten"):
    export_run.write_network(network, "packed", tmp_path / "network.bin")
  plain = network._replace(policy=None)
  with pytest.raises(ValueError, match="tiny is a float network"):
    export_run.write_network(plain, "packed", tmp_path / "network.safetensors")
  assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def report(network, written, data):
  return measure.measure_files(network, written, data, repeats=2)


def _rows(report):
  return {row["name"]: row for row in report["rows"]}


def test_every_file_is_as_good_as_the_network_in_jax(
  report, network, written, data
):
  rows = _rows(report)
  assert list(rows) == ["in JAX", "float ONNX", *written]
  test = data.parts["test"]
  assert report["images"] == len(test)
  expected = evaluate.evaluate(
    network.model, test, data.prepare, batch_size=50
  ).top1
  for name, row in rows.items():
    assert row["latency_ms"].keys() == {"1", "32"}
    if name == "float ONNX":
      assert row["top1"] is None
      continue
    assert row["top1"] == pytest.approx(expected, abs=2 / len(test))
    assert row["same"] > 0.99
  assert rows["in JAX"]["top1"] == pytest.approx(expected)
  assert rows["in JAX"]["same"] == 1


def test_sizes_are_those_of_the_disk_and_of_the_policy(
  report, network, written
):
  rows = _rows(report)
  for name in ("onnx", "packed", "stablehlo"):
    assert rows[name]["file_bytes"] == written[name].stat().st_size
  # Of the layers, and 4 of each of 4 channels of the norm and 25 biases.
  weights = {"first": 3 * 3 * 3 * 4, "middle": 9 * 4 * 6, "inner": 30}
  weights["head"] = 50
  bits = {path: x.weight_bits for path, x in network.policy.layers.items()}
  beside = 32 * (4 * 4 + 25)
  exact = sum(count * bits[path] for path, count in weights.items()) + beside
  assert rows["packed"]["promised_bytes"] == exact / 8
  # 3 bits have no type of their own.
  assert rows["onnx"]["promised_bytes"] == (exact + weights["middle"]) / 8
  whole = (32 * sum(weights.values()) + beside) / 8
  for name in ("stablehlo", "orbax", "float ONNX"):
    assert rows[name]["promised_bytes"] == whole
  # Weights, beside one step a channel of each layer, one of its input, and a
  # shift where that may be negative.
  choices = [
    p.activation for p in layers.quantized_layers(network.model).values()
  ]
  shifts = sum(choice.shift is not None for choice in choices)
  assert 1 <= shifts < 4
  steps = 4 * (4 + 6 + 5 + 10 + 4 + shifts)
  assert rows["packed"]["stored_bytes"] == pytest.approx(
    exact / 8 + steps, abs=4
  )
  assert rows["orbax"]["stored_bytes"] >= whole


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_seen(
  network, written, data, monkeypatch
):
  labels = data.parts["test"].labels[:50]
  answers = np.eye(10, dtype=np.float32)[labels]
  answers[:5] = np.nan
  answers[5:15] = np.roll(answers[5:15], 1, axis=1)
  fake = export_formats.FORMATS["packed"]._replace(
    run=lambda network, path: lambda images: answers
  )
  formats = {**export_formats.FORMATS, "packed": fake}
  monkeypatch.setattr(export_formats, "FORMATS", formats)
  found = measure.measure_files(
    network, {"packed": written["packed"]}, data, batches=1, repeats=0
  )
  assert found["images"] == 50
  rows = _rows(found)
  assert rows["packed"]["top1"] == pytest.approx(35 / 50)
  images = data.prepare(
    jax.random.key(0), {"image": data.parts["test"].images[:50]}
  )["image"]
  network.model.eval()
  own = np.asarray(network.model(images)).argmax(axis=1)
  expected = np.mean(own[5:] == answers[5:].argmax(axis=1)) * 45 / 50
  assert rows["packed"]["same"] == pytest.approx(expected)
  # Without latencies there is nothing to say of them.
  assert found["how"] is None
  assert "latency" not in measure.format_table(found)


def test_without_the_extra_other_formats_still_work(
  network, data, tmp_path, without_onnx
):
  with pytest.raises(ValueError, match=r"asga-jax\[onnx\]"):
    export_run.check_output("onnx", tmp_path / "network.onnx")
  output = tmp_path / "network.safetensors"
  export_run.write_network(network, "packed", output)
  found = measure.measure_files(
    network, {"packed": output}, data, batches=1, repeats=1
  )
  assert list(_rows(found)) == ["in JAX", "packed"]
  *_, line, _ = measure.format_table(found).splitlines()
  assert line.startswith("packed")
  assert line.split()[3] == "-"
  assert line.split()[-2:] == ["-", "-"]
  picture = measure.write_report(found, tmp_path / "report.json")
  assert picture.stat().st_size > 5000


def test_the_table_shows_latencies_as_multiples(report, tmp_path):
  rows = _rows(report)
  rows["float ONNX"]["latency_ms"] = {"1": 2.0, "32": 50.0}
  rows["onnx"] |= {"latency_ms": {"1": 1.0, "32": 75.0}, "file_bytes": 1000}
  rows["float ONNX"]["file_bytes"] = 7500
  text = measure.format_table(report)
  (line,) = (x for x in text.splitlines() if x.startswith("onnx "))
  cells = line.split()
  assert cells[2:4] == ["1.0", "7.50x"]
  assert cells[-2:] == ["0.50x", "1.50x"]
  assert "2 ms at batch 1, 50 ms at batch 32" in text
  picture = measure.write_report(report, tmp_path / "report.json")
  assert picture == tmp_path / "report.png"
  assert picture.stat().st_size > 5000


@pytest.mark.parametrize("name", ["batches", "repeats"])
def test_bad_numbers(network, data, name):
  with pytest.raises(ValueError, match=f"{name}=-1; expected at least 0"):
    measure.measure_files(network, {}, data, **{name: -1})
