"""The formats of an exported network: how each is written and run again."""

import functools
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from flax import nnx

from asga_jax import policy as policy_lib
from asga_jax.cost import costs as costs_lib
from asga_jax.deploy import packing, stablehlo
from asga_jax.weights import files as weight_files
from asga_jax.weights import load as pretrained

# Of images, float32 of shape (batch, *input_shape), to logits.
Run: TypeAlias = Callable[[np.ndarray], np.ndarray]


class Deployable(NamedTuple):
  """A network that is ready to be written, wherever it was trained."""

  model: nnx.Module  # fixed by the policy, or float
  policy: policy_lib.Policy | None  # None for a float network
  input_shape: tuple[int, ...]
  name: str


def export_onnx(
  model: nnx.Module,
  example_input: Any,
  path: str | os.PathLike[str] | None = None,
  *,
  policy: policy_lib.Policy | None = None,
  name: str = "network",
  method: str = "__call__",
) -> Any:
  """Convert a network to ONNX, for batches of any size.

  A plain `onnxruntime.InferenceSession(path)` opens the file, at any level of
  graph optimization. The network is exported in evaluation mode. One array
  alone is its input `image`; several are named as the method names them. One
  output is `logits`; several are named by their keys.

  Args:
    model: float, fixed by a policy, or searchable where a policy is given; it
      is not changed.
    example_input: what the model is called on, as `searchable` takes it: an
      array of shape (batch, ...), a tuple of arguments in order, or a dict of
      them by name. Or the shape of one input, without the batch; it then is of
      the type of the example that the model was made searchable with, else
      float32.
    path: where to write it; None to only return it. The file appears whole,
      once it has given on the example what the network gives, or not at all.
    policy: for the layers of a searchable network.
    name: of the graph.
    method: the method of the model that is called.

  Returns:
    The model, an `onnx.ModelProto`. Its metadata hold the policy's JSON and how
    each layer's weights are stored.

  Raises:
    ValueError: what is needed is not installed (the extra `onnx`), the policy
      is of other layers, or the network cannot be exported; it names the
      operation and the layer.
    OSError: the path cannot be written; found before the conversion.

  Source: operators QuantizeLinear and DequantizeLinear of ONNX, opset 25.
  """
  return onnx_library().export_onnx(
    model, example_input, path, policy=policy, name=name, method=method
  )


def onnx_library() -> Any:
  """Import what ONNX files need; ValueError if the extra is missing."""
  try:
    from asga_jax.deploy.onnx import export as onnx_export
  except ModuleNotFoundError as error:
    raise ValueError(
      f"{error}, which ONNX files need; install the extra of that name: pip"
      " install 'asga-jax[onnx]'"
    ) from error
  return onnx_export


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, state, images):
  return nnx.merge(graphdef, state, copy=True)(images)


def run_in_jax(model: nnx.Module) -> Run:
  """Make the function of a network, in evaluation mode, compiled by JAX.

  Networks of one structure share one compilation.
  """
  model = nnx.clone(model)
  model.eval()
  graphdef, state = nnx.split(model)
  return lambda images: np.asarray(_logits(graphdef, state, images))


def _write_onnx(network: Deployable, path: pathlib.Path) -> str:
  library = onnx_library()
  made = library.export_onnx(
    network.model,
    network.input_shape,
    path,
    policy=network.policy,
    name=network.name,
  )
  stored = f"{library.weight_bytes(made)} bytes of constants"
  if network.policy is None:
    return stored
  return f"{library.format_storage(made)}\n{stored}"


def _run_onnx(network: Deployable, path: pathlib.Path) -> Run:
  del network
  library = onnx_library()
  session = library.onnx_layer.open_session(library.onnx.load(path))

  def run(images: np.ndarray) -> np.ndarray:
    (logits,) = session.run([library.OUTPUT], {library.INPUT: images})
    return np.asarray(logits)

  return run


def _onnx_bytes(path: pathlib.Path) -> int:
  library = onnx_library()
  count: int = library.weight_bytes(library.onnx.load(path))
  return count


def _write_stablehlo(network: Deployable, path: pathlib.Path) -> str:
  stablehlo.export_stablehlo(network.model, network.input_shape, path)
  return f"for {', '.join(stablehlo.PLATFORMS)}, weights in float32"


def _run_stablehlo(network: Deployable, path: pathlib.Path) -> Run:
  del network
  program = jax.export.deserialize(bytearray(path.read_bytes()))
  call = jax.jit(program.call)
  return lambda images: np.asarray(call(images))


def is_orbax(path: pathlib.Path) -> bool:
  """Tell whether a directory is a checkpoint of Orbax."""
  return (path / "_METADATA").is_file()


def _write_orbax(network: Deployable, path: pathlib.Path) -> str:
  # Orbax writes no directory that is there already.
  fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
  try:
    pretrained.save_orbax(network.model, fresh)
    if is_orbax(path):
      shutil.rmtree(path)
    os.replace(fresh, path)
  finally:
    shutil.rmtree(fresh, ignore_errors=True)
  return "weights, statistics and step sizes in float32"


def _run_orbax(network: Deployable, path: pathlib.Path) -> Run:
  return run_in_jax(pretrained.load_weights(network.model, path))


def _array_bytes(path: pathlib.Path) -> int:
  return sum(array.nbytes for array in weight_files.read(path).values())


def _write_packed(network: Deployable, path: pathlib.Path) -> str:
  assert network.policy is not None
  packing.save_packed(network.model, network.policy, path)
  return "weights packed to the policy's bits, all else in float32"


def _run_packed(network: Deployable, path: pathlib.Path) -> Run:
  return run_in_jax(packing.load_packed(network.model, path))


# Bits of a file that stores every weight in float32.
_FLOAT_SIZE = costs_lib.Cost(
  "float_size",
  lambda layer, bw, ba: policy_lib.FLOAT_BITS * layer.weights,
  costs_lib.SIZE.constant,
)


class Format(NamedTuple):
  """How a format is written, and what becomes of it."""

  suffix: str
  runtime: str  # what runs it
  # What a policy promises of its size, in bits.
  cost: costs_lib.Cost
  # Gives what is to be said of the file.
  write: Callable[[Deployable, pathlib.Path], str]
  # Loads it again. The network gives its structure, not its values.
  run: Callable[[Deployable, pathlib.Path], Run]
  # Counts the bytes of its constants; None where the file does not tell them.
  stored: Callable[[pathlib.Path], int] | None = None


FORMATS: Mapping[str, Format] = {
  "onnx": Format(
    ".onnx",
    "onnxruntime",
    costs_lib.CONTAINER_SIZE,
    _write_onnx,
    _run_onnx,
    _onnx_bytes,
  ),
  "packed": Format(
    ".safetensors",
    "JAX",
    costs_lib.SIZE,
    _write_packed,
    _run_packed,
    _array_bytes,
  ),
  "stablehlo": Format(
    ".stablehlo", "jax.export", _FLOAT_SIZE, _write_stablehlo, _run_stablehlo
  ),
  "orbax": Format(
    ".orbax", "JAX", _FLOAT_SIZE, _write_orbax, _run_orbax, _array_bytes
  ),
}


def file_bytes(path: pathlib.Path) -> int:
  """Count the bytes of a file, or of all files of a directory."""
  whole = path.rglob("*") if path.is_dir() else (path,)
  return sum(file.stat().st_size for file in whole if file.is_file())
