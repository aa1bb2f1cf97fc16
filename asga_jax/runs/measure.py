"""What exported files are worth: size, accuracy in their runtime, latency."""

import itertools
import json
import os
import pathlib
import platform
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tabulate
from absl import logging
from flax import nnx

from asga_jax import files
from asga_jax import policy as policy_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.cost import macs
from asga_jax.data import batches as batches_lib
from asga_jax.deploy import formats as export_formats
from asga_jax.deploy import timing
from asga_jax.network import program
from asga_jax.report import export_plot
from asga_jax.runs import build, waits
from asga_jax.runs import data as run_data
from asga_jax.weights import load as load

# Of the rows that stand beside those of the files.
REFERENCE, BASELINE = "in JAX", "float ONNX"
# Images of a timed run -> untimed runs before it. Without them one of two equal
# files was twice as slow as the other.
BATCHES = {1: 3, 32: 1}
REPEATS = 30
_WARM_UP = 1
_HOW = (
  "latency: medians of {repeats} runs in turns, each after untimed ones;"
  " onnxruntime in one thread, JAX with all of {cores} cores, where bits are"
  " simulated in float"
)


def measure_files(
  network: export_formats.Deployable,
  written: Mapping[str, str | os.PathLike[str]],
  data: run_data.RunData,
  *,
  batches: int = 0,
  repeats: int = REPEATS,
) -> dict[str, Any]:
  """Load files again, run each in its runtime and set it beside the network.

  Args:
    network: what was written.
    written: format, of `export_formats.FORMATS` -> path.
    data: of the run; the test split is what the files are run on.
    batches: how many batches of it, of `config.eval_batch_size`; 0 for all.
    repeats: runs of each file at each size of `BATCHES`; 0 for no latencies.

  Returns:
    JSON: 'model', 'data', 'split', 'images', 'machine', 'how' and 'rows': of
    the network in JAX, of the same weights as a float ONNX file (if it can be
    made), and of each file. A row has 'name', 'runtime', 'file_bytes',
    'stored_bytes' (of constants), 'promised_bytes' (what the policy makes of
    the weights of the exported network, in the format), 'top1' and 'same' (the
    share of images with the same class as in JAX), both in [0, 1], and
    'latency_ms' by size of the batch; None where there is no such figure.

  Raises:
    ValueError: bad numbers, or a file that cannot be loaded.
  """
  for name, value in {"batches": batches, "repeats": repeats}.items():
    if value < 0:
      raise ValueError(f"{name}={value}; expected at least 0")
  plain = _in_float(network.model, data)
  runs = {REFERENCE: export_formats.run_in_jax(network.model)}
  rows = {REFERENCE: _row(REFERENCE, "JAX")}
  baseline = _baseline(network, plain)
  if baseline is not None:
    rows[BASELINE], runs[BASELINE] = baseline
  for name, given in written.items():
    path, kind = pathlib.Path(given), export_formats.FORMATS[name]
    runs[name] = kind.run(network, path)
    rows[name] = _row(
      name,
      kind.runtime,
      file_bytes=export_formats.file_bytes(path),
      stored_bytes=kind.stored(path) if kind.stored else None,
      promised_bytes=_promised(network, plain, kind.cost),
    )
  # The weights in float are nobody's network: they were trained at the bits.
  classified = {k: run for k, run in runs.items() if k != BASELINE}
  with waits.told("running the files on test images"):
    taken, found = _classify(classified, data, batches)
  for name, predicted in found.items():
    rows[name]["top1"] = float(np.mean(predicted == taken))
    rows[name]["same"] = float(np.mean(predicted == found[REFERENCE]))
  how = None
  if repeats:
    how = _HOW.format(repeats=repeats, cores=os.cpu_count())
    for size in BATCHES:
      for name, ms in _time(runs, data, size, repeats).items():
        rows[name]["latency_ms"][str(size)] = ms
  return {
    "model": network.name,
    "data": data.dataset.name,
    "split": "test",
    "images": len(taken),
    "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
    "how": how,
    "rows": list(rows.values()),
  }


def _row(name: str, runtime: str, **sizes: int | float | None) -> Any:
  return {
    "name": name,
    "runtime": runtime,
    "file_bytes": None,
    "stored_bytes": None,
    "promised_bytes": None,
    "top1": None,
    "same": None,
    "latency_ms": {},
    **sizes,
  }


def _in_float(model: nnx.Module, data: run_data.RunData) -> nnx.Module:
  """Give the same weights to the float network."""
  kept = load.variables_of(model, only=(nnx.Param, nnx.BatchStat))
  return load.fill(
    build.make_network(data.config, data.dataset.num_classes, trained=False),
    {name: np.asarray(array) for name, array in kept.items()},
    source="the exported network",
  )


def _baseline(
  network: export_formats.Deployable, plain: nnx.Module
) -> tuple[Any, export_formats.Run] | None:
  """Make the float ONNX file; None where there cannot be one."""
  kind = export_formats.FORMATS["onnx"]
  assert kind.stored is not None
  deployable = network._replace(model=plain, policy=None)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "float.onnx"
    try:
      kind.write(deployable, path)
    except ValueError as error:
      logging.warning("no float ONNX to compare with: %s", error)
      return None
    row = _row(
      BASELINE,
      kind.runtime,
      file_bytes=export_formats.file_bytes(path),
      stored_bytes=kind.stored(path),
      promised_bytes=_promised(deployable, plain, kind.cost),
    )
    return row, kind.run(deployable, path)


def _promised(
  network: export_formats.Deployable, plain: nnx.Module, cost: costs_lib.Cost
) -> float:
  """Count the bytes of the exported network at its policy.

  The policy's own size is that of the network that costs were counted on, which
  may have another head.
  """
  policy = network.policy
  layers = {} if policy is None else policy.layers
  products = [x for x in program.find_products(plain) if x in layers]
  stats = macs.network_stats(plain, network.input_shape, products=products)
  bits = dict.fromkeys(
    stats.paths, (policy_lib.FLOAT_BITS, policy_lib.FLOAT_BITS)
  )
  for path, layer in layers.items():
    bits[path] = (layer.weight_bits, layer.activation_bits)
  return float(costs_lib.total_cost(stats, bits, cost)) / 8


def _classify(
  runs: Mapping[str, export_formats.Run],
  data: run_data.RunData,
  batches: int,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Give the classes of test images, and what every runtime takes them for."""
  labels: list[np.ndarray] = []
  found: dict[str, list[np.ndarray]] = {name: [] for name in runs}
  every = batches_lib.eval_batches(
    data.parts["test"], data.config.eval_batch_size
  )
  for batch in itertools.islice(every, batches or None):
    images = _prepare(data, batch["image"])
    counted = batch["mask"] > 0
    labels.append(batch["label"][counted])
    for name, run in runs.items():
      logits = run(images)
      # No class where a logit is NaN: such an image must not count as right.
      broken = np.isnan(logits).any(axis=1)
      predicted = np.where(broken, -1, np.argmax(logits, axis=1))
      found[name].append(predicted[counted])
  return np.concatenate(labels), {
    name: np.concatenate(parts) for name, parts in found.items()
  }


def _prepare(data: run_data.RunData, images: np.ndarray) -> np.ndarray:
  return np.asarray(data.prepare(jax.random.key(0), {"image": images})["image"])


def _time(
  runs: Mapping[str, export_formats.Run],
  data: run_data.RunData,
  size: int,
  repeats: int,
) -> dict[str, float]:
  """Time every runtime on equal images, in ms."""
  test = data.parts["test"].images
  images = _prepare(data, np.resize(test[:size], (size, *test.shape[1:])))
  calls = [lambda run=run: run(images) for run in runs.values()]
  times = timing.median_ms(
    calls, repeats, warm_up=_WARM_UP, before=BATCHES[size]
  )
  return dict(zip(runs, times, strict=True))


def write_report(
  report: dict[str, Any], path: str | os.PathLike[str]
) -> pathlib.Path:
  """Write a report as JSON and, beside it, its picture.

  Args:
    report: from `measure_files`.
    path: of the JSON file.

  Returns:
    Where the picture is.
  """
  path = pathlib.Path(path)
  files.write_text_atomic(path, json.dumps(report, indent=2) + "\n")
  picture = path.with_suffix(".png")
  where = f"{report['data']}, {report['images']} {report['split']} images"
  export_plot.plot_export(
    report["rows"],
    picture,
    baseline=BASELINE,
    title=f"{report['model']} on {where}",
  )
  return picture


def format_table(report: dict[str, Any]) -> str:
  """Lay out a report for the terminal: a line a file, latencies as ratios."""
  of_float = next((x for x in report["rows"] if x["name"] == BASELINE), None)
  base = of_float["latency_ms"] if of_float else {}
  whole = of_float["file_bytes"] if of_float else None
  lines = [
    (
      "",
      "runtime",
      "file KB",
      "smaller",
      "constants",
      "promised",
      "top-1 %",
      "as JAX %",
      *(f"batch {size}" for size in BATCHES),
    )
  ]
  for row in report["rows"]:
    file, *sizes = (row[f"{x}_bytes"] for x in ("file", "stored", "promised"))
    shares = (row["top1"], row["same"])
    ratios = (_ratio(row["latency_ms"], base, str(size)) for size in BATCHES)
    lines.append(
      (
        row["name"],
        row["runtime"],
        _kilobytes(file),
        f"{whole / file:.2f}x" if whole and file else "-",
        *map(_kilobytes, sizes),
        *("-" if x is None else f"{100 * x:.2f}" for x in shares),
        *ratios,
      )
    )
  table = tabulate.tabulate(
    lines,
    tablefmt="plain",
    disable_numparse=True,
    colalign=("left", "left", *("right",) * (len(lines[0]) - 2)),
  )
  where = f"{report['data']}, {report['split']}, {report['images']} images"
  laid = [f"{report['model']} on {where}", table]
  if report["how"]:
    laid.append(report["how"])
  if base:
    each = ", ".join(f"{ms:.3g} ms at batch {n}" for n, ms in base.items())
    laid.append(f"1.00x is the time of the float ONNX: {each}")
  return "\n".join(laid)


def _kilobytes(size: float | None) -> str:
  return "-" if size is None else f"{size / 1e3:,.1f}"


def _ratio(
  own: Mapping[str, float], base: Mapping[str, float], size: str
) -> str:
  return f"{own[size] / base[size]:.2f}x" if size in base else "-"
