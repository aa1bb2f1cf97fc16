"""The evaluation of a trained run on any split, quantized against float."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import tabulate
from flax import nnx

from asga_jax import data as data_lib
from asga_jax import evaluate, files
from asga_jax.quantization import layers
from asga_jax.report import confusion
from asga_jax.runs import build, read, waits, workdir
from asga_jax.runs import data as run_data
from asga_jax.weights import files as weight_files
from asga_jax.weights import load as pretrained

# What `compare` calls the weights of the run itself in float.
OWN_FLOAT = "float"


def evaluate_run(
  path: str | os.PathLike[str],
  *,
  split: str = "test",
  compare: Sequence[str] = (),
) -> dict[str, Any]:
  """Evaluate the network of a search or a fine-tuning that has ended.

  Batch norm is re-estimated on training images, for each form of the network,
  as the run's configuration says. Writes `evaluation-SPLIT.json` and, of the
  first network, `confusion-SPLIT.png` in the work directory.

  Args:
    path: the work directory. A search is evaluated at its policy with the
      weights that it left.
    split: 'train', 'test', the source's own name of the latter, or, of a
      bilevel search, 'heldout'.
    compare: what else to evaluate: 'float' for the run's own weights without
      quantization, the work directory of another run, or a file of float
      weights of the same network and classes.

  Returns:
    What the file holds: 'data', 'split', 'images', 'class_names' and, by name,
    'networks' with 'top1', 'top5', 'loss' and 'confusion'.

  Raises:
    ValueError: no such run or split, a run that has not ended, or weights that
      do not fit the data.
    OSError: the work directory cannot be written to; found before the
      evaluation.
  """
  directory = pathlib.Path(path)
  trained = read.read_trained(directory)
  config = trained.config
  data = run_data.load(config, trained.seed)
  dataset = data.dataset
  name = "test" if split == dataset.test_split else split
  if name not in data.parts:
    raise ValueError(
      f"split={split!r}; the data {dataset.name!r} has {sorted(data.parts)}"
    )
  written = directory / f"evaluation-{name}.json"
  picture = directory / f"confusion-{name}.png"
  for file in (written, picture):
    files.check_writable(file)
  found = {}
  for label, model in _networks(trained, dataset, compare).items():
    with waits.told(f"evaluating {label}"):
      run_data.settle(model, data)
      found[label] = evaluate.evaluate(
        model, data.parts[name], data.prepare, batch_size=config.eval_batch_size
      )
  first = next(iter(found))
  report = {
    "data": dataset.name,
    "split": name,
    "images": found[first].images,
    "class_names": list(dataset.class_names),
    "networks": {
      label: {**x.figures(), "confusion": x.confusion.tolist()}
      for label, x in found.items()
    },
  }
  files.write_text_atomic(written, json.dumps(report) + "\n")
  confusion.plot_confusion(
    found[first].confusion,
    picture,
    class_names=dataset.class_names,
    title=f"{config.model}, {first}, on {dataset.name} {name}",
  )
  return report


def _networks(
  trained: read.TrainedRun,
  dataset: data_lib.Dataset,
  compare: Sequence[str],
) -> dict[str, nnx.Module]:
  """Name the networks to evaluate, the run's own first."""
  own = "float" if trained.policy is None else "quantized"
  found = {own: trained.model}
  if trained.averaged is not None:
    found[f"{own}, averaged"] = trained.averaged
  for given in compare:
    if given == OWN_FLOAT:
      if workdir.is_quantization(trained.config):
        found["float"] = build.make_network(trained.config, dataset.num_classes)
      elif trained.policy is not None:
        found["its weights in float"] = _in_float(trained.model)
    elif pathlib.Path(given).is_dir():
      found[given] = _read_other(trained.config, given)
    else:
      found[given] = _load_float(trained.config, dataset, given)
  return found


def _read_other(config: ml_collections.ConfigDict, path: str) -> nnx.Module:
  """Read another run's network; ValueError if it is of other images."""
  other = read.read_trained(path)
  wanted, found = (
    (each.data.name, each.data.image_size) for each in (config, other.config)
  )
  if wanted != found:
    raise ValueError(
      f"{path} was trained on {found[0]} at size {found[1]}; expected a run on "
      f"{wanted[0]} at size {wanted[1]}"
    )
  return other.model


def _in_float(model: nnx.Module) -> nnx.Module:
  """Copy a quantized network with all its products in float."""
  copy: nnx.Module = nnx.clone(model)
  layers.make_float(copy)
  return copy


def _load_float(
  config: ml_collections.ConfigDict, dataset: data_lib.Dataset, path: str
) -> nnx.Module:
  network = build.make_network(config, dataset.num_classes, trained=False)
  arrays = weight_files.read(path)
  try:
    return pretrained.fill(network, arrays, source=path)
  except weight_files.WeightsError as error:
    raise weight_files.WeightsError(
      f"{error}\n  expected the float weights of {config.model} for the "
      f"{dataset.num_classes} classes of {dataset.name}, or the work directory "
      "of a run"
    ) from error


def format_evaluation(report: dict[str, Any]) -> str:
  """Lay out an evaluation for the terminal: a line a network."""
  rows = [("network", "top-1", "top-5", "loss")]
  for label, figures in report["networks"].items():
    shares = (f"{figures[name]:.2%}" for name in ("top1", "top5"))
    rows.append((label, *shares, f"{figures['loss']:.4f}"))
  laid = tabulate.tabulate(
    rows,
    tablefmt="plain",
    disable_numparse=True,
    colalign=("left", *("right",) * 3),
  )
  where = f"{report['data']}, {report['split']}, {report['images']} images"
  return f"{where}\n{laid}"
