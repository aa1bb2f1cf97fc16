"""The network of a finished run as a file that other programs load."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from flax import nnx

from asga_jax import (
  conversion,
  files,
  pretrained,
  search_parts,
  weight_files,
)
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.deploy import stablehlo
from asga_jax.training import workdir


class Deployable(NamedTuple):
  """A network that is ready to be written, wherever it was trained."""

  model: nnx.Module  # fixed by the policy
  policy: policy_lib.Policy
  input_shape: tuple[int, ...]


def from_search(
  path: str | os.PathLike[str],
  found: result_lib.SearchResult,
  policy: policy_lib.Policy,
) -> Deployable:
  """Fix a searched network at a policy, with the weights of the search.

  Args:
    path: the work directory of the search, which knows the size of its images.
    found: what `search_run.restore` reads there.
    policy: one of its policies.
  """
  config = ml_collections.ConfigDict(workdir.read_config(pathlib.Path(path)))
  shape = tuple(search_parts.example_shape(config))
  return Deployable(conversion.with_policy(found.model, policy), policy, shape)


def export_onnx(
  model: nnx.Module,
  input_shape: Sequence[int],
  path: str | os.PathLike[str] | None = None,
  **settings: Any,
) -> Any:
  """Convert a network to ONNX; see `deploy.onnx_export.export_onnx`.

  Args:
    model: float, or fixed by a policy; it is not changed.
    input_shape: of one input, without the batch.
    path: where to write it; None to only return it.
    **settings: `policy`, `name` and `method`.

  Returns:
    The model, an `onnx.ModelProto`.

  Raises:
    ValueError: what is needed is not installed, or the network cannot be
      exported; it names the operation and the layer.
    OSError: the path cannot be written.
  """
  return _onnx().export_onnx(model, input_shape, path, **settings)


def _onnx() -> Any:
  try:
    from asga_jax.deploy import onnx_export
  except ModuleNotFoundError as error:
    raise ValueError(
      f"{error}, which ONNX files need; install the extra of that name: pip"
      " install 'asga-jax[onnx]'"
    ) from error
  return onnx_export


def _write_onnx(network: Deployable, path: pathlib.Path) -> str:
  library = _onnx()
  made = library.export_onnx(
    network.model,
    network.input_shape,
    path,
    policy=network.policy,
    name=network.policy.model,
  )
  stored = library.weight_bytes(made)
  return f"{library.format_storage(made)}\n{stored} bytes of constants"


def _write_stablehlo(network: Deployable, path: pathlib.Path) -> str:
  stablehlo.export_stablehlo(network.model, network.input_shape, path)
  return f"for {', '.join(stablehlo.PLATFORMS)}, weights in float32"


def _write_orbax(network: Deployable, path: pathlib.Path) -> str:
  pretrained.save_orbax(network.model, path)
  return "weights, statistics and step sizes in float32"


class _Format(NamedTuple):
  """How a format is written."""

  suffix: str
  # Gives what is to be said of the file.
  write: Callable[[Deployable, pathlib.Path], str]


FORMATS: Mapping[str, _Format] = {
  "onnx": _Format(".onnx", _write_onnx),
  "stablehlo": _Format(".stablehlo", _write_stablehlo),
  "orbax": _Format(".orbax", _write_orbax),
}


def check(name: str, path: str | os.PathLike[str]) -> None:
  """Check before long work that a network can be written.

  Args:
    name: of `FORMATS`.
    path: where to.

  Raises:
    ValueError: what the format needs is not installed.
    OSError: the path cannot be written, or a directory of Orbax is there.
  """
  if name == "onnx":
    _onnx()
  if name == "orbax":
    weight_files.check_new(path)
  files.check_writable(path)


def write(network: Deployable, name: str, path: str | os.PathLike[str]) -> str:
  """Write a network in one of `FORMATS`, whole or not at all.

  An Orbax directory goes on in JAX:

      model = asga_jax.with_policy(asga_jax.searchable(network, images), policy)
      model = asga_jax.load_weights(model, "network.orbax")

  with `searchable` called as it was before the search.

  Args:
    network: what to write.
    name: of `FORMATS`.
    path: where to; with 'orbax' a directory that is not there yet.

  Returns:
    Lines that say what was written, the size last.

  Raises:
    ValueError: a network that cannot be exported, or an extra that is missing.
    OSError: the path cannot be written.
  """
  check(name, path)
  path = pathlib.Path(path)
  said = FORMATS[name].write(network, path)
  whole = path.rglob("*") if path.is_dir() else (path,)
  size = sum(file.stat().st_size for file in whole if file.is_file())
  return f"{said}\nwritten to {path}: {size} bytes"
