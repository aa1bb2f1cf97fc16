"""Does the exported file compute what was trained, how large, how fast?

Trains six networks in float on the embedded data, searches a mixed policy from
these weights, goes on at uniform 8 bits and at that policy, and exports both.
On the whole test split it compares predictions of the fake-quantized network in
JAX with those of onnxruntime (a default session, and the least share over its
levels of optimization) and of the integer reference; then sizes with what the
policy promises; and times onnxruntime, interleaved with the float network's
file. Prints a table, and writes it to --output. Every run has a work directory
there: what has ended is read, not repeated.

python benchmarks/agreement.py --output=runs/agreement
"""

import collections
import functools
import json
import pathlib
import platform
import statistics
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import terminal
from absl import app, flags, logging
from flax import nnx

from asga_jax import files
from asga_jax import policy as policy_lib
from asga_jax.deploy import folding, packing, reference, timing
from asga_jax.deploy import formats as export_formats
from asga_jax.deploy.onnx import export as onnx_export
from asga_jax.deploy.onnx import layer as onnx_layer
from asga_jax.runs import build, read, variants
from asga_jax.runs import config as config_lib
from asga_jax.runs import finetune as finetune_run
from asga_jax.runs import search as search_run
from asga_jax.weights import files as weight_files

_OUTPUT = flags.DEFINE_string("output", "runs/agreement", "Where results go.")
_NETWORKS = flags.DEFINE_multi_string(
  "network",
  ["resnet8", "resnet20", "resnet18", "mobilenet_v2", "vgg16", "vit_ti"],
  "Which networks.",
)
_BUDGET = flags.DEFINE_string("budget", "bops=4bit", "Of the mixed policies.")
_FLOAT = flags.DEFINE_integer("float_steps", 300, "Of each float network.")
_SEARCH = flags.DEFINE_integer("search_steps", 60, "Of each search.")
_STEPS = flags.DEFINE_integer("steps", 100, "Of each fine-tuning.")

# Of a training from random weights; all that starts from trained ones takes a
# fifth of it. A transformer without warm-up learns nothing at 0.1, and VGG-16,
# whose hidden layers have no norms, little.
_RATE, _RATES = 0.1, {"vit_ti": 0.01, "vgg16": 0.02}
_STEMS = {"resnet20": "small", "resnet18": "small", "mobilenet_v2": "imagenet"}
_BATCH_SIZES = {"resnet18": 32, "vgg16": 32, "vit_ti": 32}
# Of predictions.
_PART = 250
_CONTAINERS = (2, 4, 8)
_KERNEL_TYPES = (
  onnx.TensorProto.INT2,
  onnx.TensorProto.INT4,
  onnx.TensorProto.INT8,
)
# What onnxruntime makes of layers.
_INTEGER_KERNELS = ("QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat")
_FLOAT_KERNELS = ("Conv", "Gemm", "MatMul")
# Images of a timed run -> how many runs.
_TIMED = {1: 200, 32: 30}


def base_config(network: str) -> Any:
  """Make the configuration that all runs of a network share."""
  config = config_lib.default_config()
  rate = _RATES.get(network, _RATE) / 5
  config.model = network
  # On two cores the resolution of the small stem takes MobileNetV2 too long.
  config.stem = _STEMS.get(network, "small")
  variants.apply_variant(config, "small")
  config.batch_size = _BATCH_SIZES.get(network, 64)
  config.budget = _BUDGET.value
  config.search.update(steps=_SEARCH.value, learning_rate=rate)
  config.finetune.update(steps=_STEPS.value, learning_rate=rate)
  return config


def train(network: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Train a network in float and at its policies.

  Args:
    network: of `models.CONSTRUCTORS`.
    folder: holds a work directory a run.

  Returns:
    The work directories of 'float', '8 bits' and 'mixed'.
  """
  config = base_config(network)
  rate = _RATES.get(network, _RATE)
  config.finetune.update(steps=_FLOAT.value, learning_rate=rate)
  finetune_run.run_finetuning(config, folder / "float")
  config = base_config(network)
  config.weights.path = str(folder / "float" / "weights.safetensors")
  search_run.run_search(config, folder / "search")
  found = {"float": folder / "float"}
  searched = folder / "search" / "policy.json"
  for name, policy in {"8 bits": "8bit", "mixed": str(searched)}.items():
    config = base_config(network)
    config.finetune.policy = policy
    config.finetune.start_from = str(folder / "float")
    found[name] = folder / name.replace(" ", "_")
    finished = finetune_run.run_finetuning(config, found[name])
    logging.info("%s, %s: %s", network, name, finished.summary["top1"])
  return found


def measure(
  network: str, found: Mapping[str, pathlib.Path], folder: pathlib.Path
) -> dict[str, dict[str, Any]]:
  """Export the runs of a network and compare them.

  Args:
    network: its name.
    found: from `train`.
    folder: where the exported files go.

  Returns:
    By the name of a run, its figures: shares in [0, 1], sizes in bytes.
  """
  runs = {name: read.read_trained(path) for name, path in found.items()}
  config = runs["float"].config
  dataset = build.load_data(config)
  prepare = build.make_prepare(config, dataset, train=False)
  test = {"image": dataset.test_images, "label": dataset.test_labels}
  images = np.asarray(prepare(jax.random.key(0), test)["image"])
  rows: dict[str, dict[str, Any]] = {}
  sessions: dict[str, Any] = {}
  for name, run in runs.items():
    path = folder / f"{name.replace(' ', '_')}.onnx"
    made = onnx_export.export_onnx(
      run.model, images.shape[1:], path, policy=run.policy, name=network
    )
    session = sessions[name] = onnx_layer.open_session(made)
    in_jax = in_parts(export_formats.run_in_jax(run.model), images)
    got = in_parts(
      lambda part, session=session: session.run(None, {"image": part})[0],
      images,
    )
    rows[name] = {
      "images": len(images),
      "top1": float(np.mean(in_jax == test["label"])),
      "onnxruntime_top1": float(np.mean(got == test["label"])),
      "onnxruntime_same": float(np.mean(got == in_jax)),
      "least_same": least_same(path, images, in_jax),
      "kernels": _kernels(made),
      "file_bytes": path.stat().st_size,
      "stored_bytes": onnx_export.weight_bytes(made),
    }
    if run.policy is not None:
      folds = folding.find_folds(run.model, images[:1])
      exact = reference.integer_forward(
        run.model, folds=folds, arithmetic="float32"
      )
      same = in_parts(export_formats.run_in_jax(exact), images) == in_jax
      rows[name] |= {
        "reference_same": float(np.mean(same)),
        **_contained(made, run.policy),
        **_packed(run.model, run.policy, path.with_suffix(".safetensors")),
      }
    logging.info("%s, %s: %s", network, name, rows[name])
  for size, repeats in _TIMED.items():
    fed = {"image": images[:size]}
    calls = [functools.partial(x.run, None, fed) for x in sessions.values()]
    every = timing.times_ms(calls, repeats, warm_up=0, before=1)
    for row, times in zip(rows.values(), every, strict=True):
      row.setdefault("ms", {})[str(size)] = times
  return rows


def least_same(
  path: pathlib.Path, images: np.ndarray, in_jax: np.ndarray
) -> float:
  """Give the least share of equal predictions over all optimization levels."""
  shares = []
  for level in onnxruntime.GraphOptimizationLevel.__members__.values():
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(path, options)
    got = in_parts(
      lambda part, session=session: session.run(None, {"image": part})[0],
      images,
    )
    shares.append(float(np.mean(got == in_jax)))
  return min(shares)


def in_parts(run: Any, images: np.ndarray) -> np.ndarray:
  """Give the classes that a network takes images for."""
  parts = [images[i : i + _PART] for i in range(0, len(images), _PART)]
  return np.concatenate([np.asarray(run(part)).argmax(1) for part in parts])


def _kernels(made: onnx.ModelProto) -> dict[str, int]:
  """Count the operations that onnxruntime makes of a model."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "optimized.onnx"
    onnx_layer.open_session(made, optimized_path=path)
    nodes = onnx.load(path).graph.node
  return dict(collections.Counter(node.op_type for node in nodes))


def _contained(
  made: onnx.ModelProto, policy: policy_lib.Policy
) -> dict[str, Any]:
  """Set the bytes of kernels and of all constants beside those promised."""
  kernels = [
    tensor
    for tensor in made.graph.initializer
    if tensor.data_type in _KERNEL_TYPES and len(tensor.dims) > 1
  ]
  return {
    "stored_weight_bytes": sum(len(tensor.raw_data) for tensor in kernels),
    "promised_stored_weight_bytes": sum(
      layer.weights * min(x for x in _CONTAINERS if x >= layer.weight_bits) / 8
      for layer in policy.layers.values()
    ),
    "promised_stored_bytes": policy.cost["container_size_bytes"],
  }


def _packed(
  model: nnx.Module, policy: policy_lib.Policy, path: pathlib.Path
) -> dict[str, Any]:
  """Write the packed file, and set its bytes beside those promised."""
  packing.save_packed(model, policy, path)
  kernels = {f"{layer}/kernel" for layer in policy.layers}
  arrays = weight_files.read(path)
  return {
    "packed_file_bytes": path.stat().st_size,
    "packed_weight_bytes": sum(arrays[name].nbytes for name in kernels),
    "promised_packed_file_bytes": policy.cost["size_bytes"],
    "promised_packed_weight_bytes": sum(
      layer.weights * layer.weight_bits / 8 for layer in policy.layers.values()
    ),
  }


def format_table(networks: Mapping[str, Mapping[str, Any]]) -> str:
  """Lay out predictions, then sizes and latencies, a line a policy.

  Sizes of weights and of all constants, or of the whole packed file, are set
  beside what the policy promises; it counts the norms, which ONNX files do not
  have, and neither step sizes nor what a packed file says of itself.
  """
  predictions = terminal.table(
    {"": f"{network}, {name}", **_predictions(row)}
    for network, rows in networks.items()
    for name, row in rows.items()
  )
  costs = terminal.table(
    {"": f"{network}, {name}", **_costs(row, rows["float"])}
    for network, rows in networks.items()
    for name, row in rows.items()
    if name != "float"
  )
  return f"{predictions}\n\n{costs}"


def _predictions(row: Any) -> dict[str, Any]:
  def percent(name: str) -> str:
    return f"{100 * row[name]:.2f}" if name in row else ""

  integer, other = (
    sum(row["kernels"].get(kind, 0) for kind in kinds)
    for kinds in (_INTEGER_KERNELS, _FLOAT_KERNELS)
  )
  return {
    "images": row["images"],
    "top-1 %": percent("top1"),
    "in onnxruntime": percent("onnxruntime_top1"),
    "same %": percent("onnxruntime_same"),
    "least": percent("least_same"),
    "reference, same %": percent("reference_same"),
    "integer products": f"{integer} of {integer + other}",
  }


def _costs(row: Any, plain: Any) -> dict[str, str]:
  def over(kind: str) -> str:
    return f"{100 * (row[kind] / row[f'promised_{kind}'] - 1):+.1f} %"

  return {
    "ONNX, KB": f"{row['file_bytes'] / 1e3:.0f}",
    "x below float": f"{plain['file_bytes'] / row['file_bytes']:.2f}",
    "weights": over("stored_weight_bytes"),
    "all": over("stored_bytes"),
    "packed, KB": f"{row['packed_file_bytes'] / 1e3:.0f}",
    "packed weights": over("packed_weight_bytes"),
    "packed all": over("packed_file_bytes"),
    "batch 1: x as fast": ratio(plain["ms"]["1"], row["ms"]["1"]),
    "batch 32": ratio(plain["ms"]["32"], row["ms"]["32"]),
  }


def ratio(slow: list[float], fast: list[float]) -> str:
  """Divide medians; in brackets the quartiles of the ratio by round."""
  median = statistics.median(slow) / statistics.median(fast)
  rounds = [a / b for a, b in zip(slow, fast, strict=True)]
  low, _, high = statistics.quantiles(rounds, n=4)
  return f"{median:.2f} ({low:.2f}-{high:.2f})"


def main(_: list[str]) -> None:
  """Train, export and compare each network."""
  logging.set_verbosity(logging.INFO)
  output = pathlib.Path(_OUTPUT.value)
  networks = {}
  for network in _NETWORKS.value:
    found = train(network, output / network)
    networks[network] = measure(network, found, output / network)
    text = json.dumps(
      {
        "budget": _BUDGET.value,
        "float_steps": _FLOAT.value,
        "search_steps": _SEARCH.value,
        "steps": _STEPS.value,
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "onnxruntime": f"{onnxruntime.__version__}, one thread",
        "networks": networks,
      },
      indent=2,
    )
    files.write_text_atomic(output / "agreement.json", text + "\n")
  print(format_table(networks))


if __name__ == "__main__":
  app.run(main)
