"""A network as a StableHLO program, which JAX runs without this package."""

import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from asga_jax import checks, files
from asga_jax.network import arguments, examples
from asga_jax.quantization import remembered
from asga_jax.xla import lowering, promotion

PLATFORMS = ("cpu", "cuda", "tpu")


@promotion.usual()
def export_stablehlo(
  model: nnx.Module,
  example_input: Any,
  path: str | os.PathLike[str] | None = None,
  *,
  method: str = "__call__",
) -> bytes:
  """Compile a network, weights included, for batches of any size.

  Whoever has JAX, and nothing else, runs it:

      with open(path, "rb") as file:
        program = jax.export.deserialize(bytearray(file.read()))
      logits = program.call(images)

  It is called as the network is, with the arrays of the example alone: flags
  keep the values that they have there.

  Args:
    model: any Flax NNX module: float, or from `with_policy`; it is exported in
      evaluation mode, and not changed.
    example_input: what the model is called on, as `searchable` takes it: an
      array of shape (batch, ...), a tuple of arguments in order, or a dict of
      them by name. Or the shape of one input, without the batch; it then is of
      the type of the example that the model was made searchable with, else
      float32.
    path: where to write it; None to only return it.
    method: the method of the model that is called.

  Returns:
    The serialized program, for CPUs, GPUs and TPUs.

  Raises:
    OSError: the path cannot be written; found before the conversion.
    ValueError: the network cannot be traced for a batch of any size.
  """
  arguments.check_module(model)
  arguments.check_method(model, method)
  example = remembered.example_of(model, example_input)
  if path is not None:
    files.check_writable(path)
  copy = nnx.clone(model)
  copy.eval()
  lowering.use_lax_convolutions(copy)
  graphdef, state = nnx.split(copy)
  _, structure = example.tree_flatten()

  def run(*arrays: Any, **named: Any) -> Any:
    # In the order of the example's own arrays.
    leaves = jax.tree.leaves((arrays, named))
    merged = nnx.merge(graphdef, state, copy=True)
    given = examples.Example.tree_unflatten(structure, leaves)
    return jax.tree.map(jnp.asarray, given.call(getattr(merged, method)))

  (batch,) = export.symbolic_shape("batch")
  try:
    called = example.shapes(batch).without_flags()
    program = called.call(export.export(jax.jit(run), platforms=PLATFORMS))
    contents = bytes(program.serialize())
  except Exception as error:
    reason = checks.reason(error)
    raise ValueError(
      f"{type(model).__name__}.{method} cannot be exported for a batch of any"
      f" size of {example.describe()}: {reason}"
    ) from error
  if path is not None:
    files.write_bytes_atomic(path, contents)
  return contents
