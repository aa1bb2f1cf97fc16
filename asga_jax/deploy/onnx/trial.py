"""The run of every new file, beside the network in JAX."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from flax import nnx

from asga_jax.deploy.onnx import layer as onnx_layer
from asga_jax.deploy.onnx import values as onnx_values
from asga_jax.network import examples

_TRIED = (1, 9)  # batches that every new model is run on
# What a file may give other than the network, in shares of its length.
_MOST_APART = 0.05
# A network of few bits carries on what rounding moves: it may be so many times
# as far off as the network itself with all parameters a millionth off.
_MOST_OF_ROUNDING, _MILLIONTH = 2, 1e-6


def check(
  made: onnx.ModelProto,
  model: nnx.Module,
  method: str,
  example: examples.Example,
  inputs: Sequence[str],
  outputs: Mapping[str, Sequence[Any]],
) -> None:
  """Check a model, and compare what it gives with what the network gives.

  Args:
    made: the model.
    model: the network.
    method: the one that was exported.
    example: what it takes. Of shapes alone, random numbers are tried.
    inputs: the names of its arrays.
    outputs: the names of what it gives, and their shapes.

  Raises:
    ExportError: ONNX's checker or onnxruntime refuses the model, or it gives
      something else.
  """
  try:
    _check(made, model, method, example, inputs, outputs)
  except onnx_values.ExportError:
    raise
  # Those of ONNX and of its runtime have no base in common.
  except Exception as error:
    raise onnx_values.ExportError(_told(error)) from error


def _check(
  made: onnx.ModelProto,
  model: nnx.Module,
  method: str,
  example: examples.Example,
  inputs: Sequence[str],
  outputs: Mapping[str, Sequence[Any]],
) -> None:
  onnx.checker.check_model(made, full_check=True)
  session = onnx_layer.open_session(made)
  random = np.random.default_rng(0)
  for batch in _TRIED:
    tried = _of_batch(example, batch, random)
    fed = dict(zip(inputs, tried.leaves(), strict=True))
    found = session.run(list(outputs), fed)
    for got, (name, shape) in zip(found, outputs.items(), strict=True):
      if len(got.shape) != len(shape) or any(
        isinstance(size, int) and size != whole
        for whole, size in zip(got.shape, shape, strict=True)
      ):
        raise onnx_values.ExportError(
          f"onnxruntime gives {name!r} of the shape {got.shape} for a batch of"
          f" {batch}; expected {tuple(shape)}."
        )
  wanted = jax.tree.leaves(_run_in_jax(model, method, tried))
  for index, name in enumerate(outputs):
    got, want = found[index], np.asarray(wanted[index])
    apart = _distance(got, want)
    most = _MOST_APART
    if apart > most:
      moved = _run_in_jax(_with_moved_parameters(model), method, tried)
      own = _distance(np.asarray(jax.tree.leaves(moved)[index]), want)
      most = max(most, _MOST_OF_ROUNDING * own)
    if not apart <= most:
      raise onnx_values.ExportError(
        f"onnxruntime gives {name!r} {apart:.1%} off what the network gives in"
        f" JAX (median of {batch} inputs); expected at most"
        f" {most:.0%}. Please report it with the network."
      )


def _of_batch(
  example: examples.Example, batch: int, random: np.random.Generator
) -> examples.Example:
  """Take an example's inputs in turns, or make some up."""
  varying = iter(example.varying())

  def of(leaf: Any) -> np.ndarray:
    many = next(varying)
    shape = (batch, *leaf.shape[1:]) if many else leaf.shape
    if not isinstance(leaf, jax.ShapeDtypeStruct):
      array = np.asarray(leaf).astype(jax.dtypes.canonicalize_dtype(leaf.dtype))
      return array[np.arange(batch) % len(array)] if many else array
    values = random.standard_normal(shape, np.float32)
    if np.dtype(leaf.dtype).kind != "f":
      values = np.abs(np.rint(values))
    return values.astype(leaf.dtype)

  return example.map(of)


def _with_moved_parameters(model: nnx.Module) -> nnx.Module:
  """Copy a network with each parameter up to a millionth off."""
  random = np.random.default_rng(0)
  copy = nnx.clone(model)
  state = nnx.state(copy, nnx.Param)

  def move(leaf: Any) -> Any:
    if not jax.numpy.issubdtype(leaf.dtype, np.floating):
      return leaf
    factor = 1 + _MILLIONTH * random.uniform(-1, 1, leaf.shape)
    return leaf * factor.astype(leaf.dtype)

  nnx.update(copy, jax.tree.map(move, state))
  return copy


def _run_in_jax(
  model: nnx.Module, method: str, example: examples.Example
) -> Any:
  copy = nnx.clone(model)
  copy.eval()
  graphdef, state = nnx.split(copy)

  @jax.jit
  def run(state, example):
    merged = nnx.merge(graphdef, state, copy=True)
    return example.call(getattr(merged, method))

  return run(state, example)


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
  """Give the median of an example's difference, in shares of what was wanted.

  A value between two codes may fall on either side, and a network of few bits
  carries that on: for one example, not for most.
  """
  equal = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
  first, second = (
    np.where(equal, 0, x).astype(np.float64).reshape(len(np.atleast_1d(x)), -1)
    for x in (found, wanted)
  )
  scale = np.linalg.norm(second, axis=1)
  apart = np.linalg.norm(first - second, axis=1)
  tiny = float(np.finfo(np.float32).tiny)
  return float(np.median(apart / np.maximum(scale, tiny)))


def _told(error: Exception) -> str:
  """Say in a line what ONNX or its runtime has against a file."""
  text = " ".join(str(error).split())
  node = re.search(r"node (?:with )?name:? ?'?([^\s')]+)", text)
  at = f" at {node[1]!r} (layer and operation)" if node else ""
  return f"the file would not run{at}: {text}"
