"""How many integer codes a perturbation of the weights changes."""

import jax
import jax.numpy as jnp
from flax import nnx

from asga_jax.quantization import layers
from asga_jax.training import state as state_lib
from asga_jax.xla import reductions

# About how many elements of a kernel are looked at.
SAMPLED = 4096


def changed_codes(
  graphdef: nnx.GraphDef,
  rest: nnx.State,
  params: state_lib.Params,
  displaced: state_lib.Params,
) -> jax.Array:
  """Estimate the share of integer weight codes that a perturbation changes.

  Each kernel counts at its most likely candidate, by its size; of a large one
  evenly spread rows of about `SAMPLED` elements are looked at. At few bits a
  small perturbation may change no code at all, and then sharpness cannot speak.

  Args:
    graphdef: of the network.
    rest: what is not trained.
    params: at which the perturbation starts, with unstacked logits.
    displaced: where it ends.

  Returns:
    Shape (), float32, in [0, 1]; 0 for a network without quantized layers.
  """
  before = layers.kernel_layers(state_lib.merge_model(graphdef, params, rest))
  after = layers.kernel_layers(state_lib.merge_model(graphdef, displaced, rest))
  sizes = {path: layer.kernel.size for path, layer in before.items()}
  whole = sum(sizes.values())
  shares = [jnp.zeros((), jnp.float32)]
  for path, layer in before.items():
    stride = max(1, sizes[path] // SAMPLED)
    codes = [
      found.product.weight.codes(found.kernel_matrix()[::stride])
      for found in (layer, after[path])
    ]
    # What one element of the sample stands for, where its code has changed.
    share = jnp.float32(sizes[path] / max(whole * codes[0].size, 1))
    shares.append(jnp.where(codes[0] != codes[1], share, 0))
  return reductions.total(shares)
