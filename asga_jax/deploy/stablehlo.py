"""A network as a StableHLO program, which JAX runs without this package."""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from asga_jax import files
from asga_jax.network import arguments
from asga_jax.quantization import promotion, remembered
from asga_jax.xla import lowering

PLATFORMS = ("cpu", "cuda", "tpu")


@promotion.usual()
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
    input_shape: of one input, without the batch; of the type of the example
      that the network was made searchable with, else float32.
    path: where to write it; None to only return it.
    method: the method of the model that is called.

  Returns:
    The serialized program, for CPUs, GPUs and TPUs.

  Raises:
    OSError: the path cannot be written; found before the conversion.
    ValueError: the network cannot be traced for a batch of any size.
  """
  arguments.check_module(model)
  shape = arguments.check_shape(input_shape)
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
  dtype = remembered.input_dtype(model, len(shape))
  images = jax.ShapeDtypeStruct((batch, *shape), dtype)
  try:
    program = export.export(jax.jit(run), platforms=PLATFORMS)(images)
  except Exception as error:
    reason = " ".join(str(error).split())[:600]
    raise ValueError(
      f"{type(model).__name__}.{method} cannot be exported for inputs of"
      f" {np.dtype(dtype)} and the shape {shape}: {reason}"
    ) from error
  contents = bytes(program.serialize())
  if path is not None:
    files.write_bytes_atomic(path, contents)
  return contents
