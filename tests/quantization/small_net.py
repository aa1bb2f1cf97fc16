"""A small network, an input of it, and the same bits for all of its layers."""

import draws
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.quantization import layers


class Net(nnx.Module):
  """Calls its layers in another order than their names have; shares one."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.z_stem = nnx.Conv(
      3, 8, (3, 3), kernel_init=draws.from_numpy, rngs=rngs
    )
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.blocks = nnx.List(
      [
        nnx.Conv(
          8,
          8,
          (3, 3),
          strides=2,
          feature_group_count=8,
          use_bias=False,
          kernel_init=draws.from_numpy,
          rngs=rngs,
        )
      ]
    )
    self.shared = nnx.Linear(8, 8, kernel_init=draws.from_numpy, rngs=rngs)
    self.again = self.shared
    self.a_head = nnx.Linear(8, 10, kernel_init=draws.from_numpy, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.z_stem(x)))
    x = nnx.relu(self.blocks[0](x)).mean(axis=(1, 2))
    return self.a_head(self.again(nnx.relu(self.shared(x))))


def make_net():
  model = Net()
  model.eval()
  return model


def draw_input(shape=(4, 8, 8, 3), seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


X = draw_input()
forward = nnx.jit(lambda model, x: model(x))


def same_bits(model, bits):
  return {path: bits for path in layers.quantized_layers(model)}
