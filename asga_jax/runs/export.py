"""The network of a finished run as a file that other programs load."""

import os
import pathlib

from absl import logging

from asga_jax import conversion, files
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.deploy import formats as export_formats
from asga_jax.runs import build as search_parts
from asga_jax.runs import data as run_data
from asga_jax.runs import read as trained_runs
from asga_jax.runs import waits
from asga_jax.weights import files as weight_files


def from_search(
  found: result_lib.SearchResult,
  policy: policy_lib.Policy,
  data: run_data.RunData,
) -> export_formats.Deployable:
  """Fix a searched network at a policy, with the weights of the search.

  Batch norm is re-estimated on training images, as it is before a policy is
  evaluated: a search's own statistics are those of its mixture of bits.

  Args:
    found: what `search_run.restore` reads.
    policy: one of its policies.
    data: of the search.
  """
  model = conversion.with_policy(found.model, policy)
  with waits.told("re-estimating batch norm at the policy"):
    seen = run_data.settle(model, data)
  if seen:
    logging.info(
      "batch norm is re-estimated at the policy on %d training images of %s",
      seen,
      data.dataset.name,
    )
  shape = tuple(search_parts.example_shape(data.config))
  return export_formats.Deployable(model, policy, shape, data.config.model)


def from_finetune(
  trained: trained_runs.TrainedRun, *, averaged: bool = False
) -> export_formats.Deployable:
  """Take the network of a fine-tuning as it was evaluated.

  Args:
    trained: from `trained_runs.read`.
    averaged: whether to take the running average of its weights.

  Raises:
    ValueError: an average that was not kept.
  """
  model = trained.averaged if averaged else trained.model
  if model is None:
    raise ValueError(
      "the fine-tuning kept no average of its weights: its "
      "config.finetune.ema_decay is 0"
    )
  shape = tuple(search_parts.example_shape(trained.config))
  return export_formats.Deployable(
    model, trained.policy, shape, trained.config.model
  )


def check(name: str, path: str | os.PathLike[str]) -> None:
  """Check before long work that a network can be written.

  Args:
    name: of `export_formats.FORMATS`.
    path: where to.

  Raises:
    ValueError: what the format needs is not installed, or another suffix than
      the format must have.
    OSError: the path cannot be written, or what is there is no Orbax
      checkpoint where one is to be replaced.
  """
  path = pathlib.Path(path)
  if name == "onnx":
    export_formats.onnx_library()
  if name == "packed" and path.suffix != export_formats.FORMATS[name].suffix:
    raise ValueError(
      f"{path} is no name for a packed network; expected one that ends in "
      f"{export_formats.FORMATS[name].suffix}"
    )
  if name != "orbax":
    files.check_writable(path)
  elif export_formats.is_orbax(path):
    # Beside the checkpoint, where its successor is written first.
    files.check_writable(path.with_name(f".{path.name}"))
  else:
    weight_files.check_new(path)


def write(
  network: export_formats.Deployable, name: str, path: str | os.PathLike[str]
) -> str:
  """Write a network in one of `export_formats.FORMATS`, whole or not at all.

  An Orbax directory goes on in JAX:

      model = asga_jax.with_policy(asga_jax.searchable(network, images), policy)
      model = asga_jax.load_weights(model, "network.orbax")

  with `searchable` called as it was before the search, or
  `asga_jax.quantize(network, images, policy)` for a fine-tuned network.

  Args:
    network: what to write.
    name: of the format.
    path: where to; a file or a checkpoint of Orbax that is there is replaced.

  Returns:
    Lines that say what was written, the size last.

  Raises:
    ValueError: a network that cannot be exported, a float one that is to be
      packed, or an extra that is missing.
    OSError: the path cannot be written.
  """
  check(name, path)
  if name == "packed" and network.policy is None:
    raise ValueError(
      f"{network.name} is a float network, whose weights cannot be packed; "
      "expected one at a policy"
    )
  path = pathlib.Path(path)
  said = export_formats.FORMATS[name].write(network, path)
  return f"{said}\nwritten to {path}: {export_formats.file_bytes(path)} bytes"
