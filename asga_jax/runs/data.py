"""The data of a run in a work directory, as that run saw it."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import ml_collections
from flax import nnx

from asga_jax import data as data_lib
from asga_jax import evaluate
from asga_jax.quantization import batch_norm
from asga_jax.runs import build, workdir
from asga_jax.training import steps


class RunData(NamedTuple):
  """Data, and how the run of a configuration takes them."""

  config: ml_collections.ConfigDict
  seed: int
  dataset: data_lib.Dataset
  # 'train', 'test' and, of a bilevel search, 'heldout'.
  parts: Mapping[str, data_lib.Split]
  prepare: steps.PrepareFn  # without augmentation


def load(config: ml_collections.ConfigDict, seed: int) -> RunData:
  """Load and part the data as a run did.

  Args:
    config: of a run.
    seed: of that run.

  Raises:
    ValueError: there are no such data.
  """
  if not config.data.name:
    raise data_lib.DataError(
      "config.data.name is empty: the run has no images with labels to be"
      " evaluated on; expected a run that has, or --report=false of an export"
    )
  dataset = build.load_data(config)
  if workdir.is_quantization(config):
    dataset = with_classes(dataset, config.deployed.num_classes)
  bilevel = "search" in config and config.search.mode == "bilevel"
  splits = data_lib.split_proxy(
    dataset,
    heldout_fraction=config.data.heldout_fraction if bilevel else 0.0,
    seed=seed,
  )
  parts = {
    "train": splits.train,
    "heldout": splits.heldout,
    "test": splits.report,
  }
  return RunData(
    config,
    seed,
    dataset,
    {name: part for name, part in parts.items() if len(part)},
    build.make_prepare(config, dataset, train=False),
  )


def with_classes(dataset: data_lib.Dataset, classes: int) -> data_lib.Dataset:
  """Name the classes of a network of which data show but the first."""
  more = range(dataset.num_classes, classes)
  return dataclasses.replace(
    dataset, class_names=(*dataset.class_names, *map(str, more))
  )


def of_run(path: str | os.PathLike[str]) -> RunData:
  """Load the data of the run in a work directory; see `load`."""
  config = ml_collections.ConfigDict(workdir.read_config(path))
  if workdir.is_quantization(config):
    return load(config, 0)
  group = config.search if "search" in config else config.finetune
  return load(config, group.seed)


def settle(model: nnx.Module, data: RunData) -> int:
  """Re-estimate batch norm on training images, as the configuration says.

  Args:
    model: of the run, at one policy; changed in place, and left in evaluation
      mode.
    data: of the run.

  Returns:
    How many images were seen; 0 where no norm has statistics.
  """
  if workdir.is_quantization(data.config):
    # Corrected by what differs from the float network, on other images.
    model.eval()
    return 0
  size: int = data.config.eval_batch_size
  return size * batch_norm.reestimate_batch_norm(model, norm_inputs(data))


def norm_inputs(data: RunData) -> Iterator[jax.Array]:
  """Yield the training images from which a run estimates batch norm."""
  return evaluate.norm_inputs(
    data.parts["train"],
    data.prepare,
    batch_size=data.config.eval_batch_size,
    batches=data.config.batch_norm_batches,
    seed=data.seed,
  )
