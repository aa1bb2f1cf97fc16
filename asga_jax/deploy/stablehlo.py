"""A network as a StableHLO program, which JAX runs without this package."""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from asga_jax import files
from asga_jax.xla import lowering

PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(
  model: nnx.Module,
  input_shape: Sequence[int],
  path: str | os.PathLike[str] | None = None,
  *,
  method: str = "__call__",
) -> bytes:
  """Compile a network, weights included, for batches of any size.

  Whoever has JAX, and nothing else, runs it:

      with open(path, "rb") as file:
        program = jax.export.deserialize(bytearray(file.read()))
      logits = program.call(images)

  Args:
    model: any Flax NNX module of one input: float, or from `with_policy`; it
      is exported in evaluation mode, and not changed.
    input_shape: of one input, float32, without the batch.
    path: where to write it; None to only return it.
    method: the method of the model that is called.

  Returns:
    The serialized program, for CPUs, GPUs and TPUs.

  Raises:
    OSError: the path cannot be written; found before the conversion.
    ValueError: the network cannot be traced for a batch of any size.
  """
  if path is not None:
    files.check_writable(path)
  copy = nnx.clone(model)
  copy.eval()
  lowering.use_lax_convolutions(copy)
  graphdef, state = nnx.split(copy)

  def run(images: jax.Array) -> jax.Array:
    result = getattr(nnx.merge(graphdef, state, copy=True), method)(images)
    return jnp.asarray(result)

  (batch,) = export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, *input_shape), jnp.float32)
  program = export.export(jax.jit(run), platforms=PLATFORMS)(images)
  contents = bytes(program.serialize())
  if path is not None:
    files.write_bytes_atomic(path, contents)
  return contents
