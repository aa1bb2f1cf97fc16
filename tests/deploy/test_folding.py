"""Which norms are folded into the layers before them, and which are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asga_jax.deploy import folding, reference
from asga_jax.quantization import surgery


class Branches(nnx.Module):
  """Norms after layers in ways that can and cannot be folded."""

  def __init__(self, rngs):
    self.layers = nnx.Dict(
      {
        name: nnx.Linear(4, 4, rngs=rngs)
        for name in (
          "read_twice",
          "after_relu",
          "reshaped",
          "two_norms",
          "shared_a",
          "shared_b",
          "again",
          "half_shared",
          "training",
          "inside",
          "returned",
        )
      }
    )
    self.norms = nnx.Dict(
      {name: nnx.BatchNorm(4, rngs=rngs) for name in self.layers}
    )
    self.head = nnx.Linear(4, 2, rngs=rngs)
    self.compiles = False

  def __call__(self, x):
    layer, norm = self.layers, self.norms
    y = layer["read_twice"](x)
    y = y + norm["read_twice"](y)
    y = norm["after_relu"](nnx.relu(layer["after_relu"](y)))
    y = norm["reshaped"](layer["reshaped"](y).reshape(-1, 1, 4))
    y = y.reshape(-1, 4)
    # One layer read by two norms in turn.
    y = norm["two_norms"](layer["two_norms"](y))
    y = norm["again"](layer["two_norms"](y))
    # One norm read by two layers, and by nothing else.
    y = norm["shared_a"](layer["shared_a"](y))
    y = norm["shared_a"](layer["shared_b"](y))
    # One norm of a layer and of something else.
    y = norm["half_shared"](layer["half_shared"](y))
    y = norm["half_shared"](jnp.tanh(y))
    y = norm["training"](layer["training"](y), use_running_average=False)

    def inside(y):
      return norm["inside"](layer["inside"](y))

    y = jax.jit(inside)(y) if self.compiles else inside(y)
    z = layer["returned"](y)
    return self.head(norm["returned"](z)), z


@pytest.mark.slow
def test_norms_are_folded_only_where_nothing_else_reads_the_layer():
  x = jax.random.normal(jax.random.key(0), (8, 4))
  model = surgery.make_searchable(
    Branches(nnx.Rngs(0)),
    x,
    bits=(8,),
    weight_quantizer="hwgq",
    activation_quantizer="hwgq",
  )
  model.eval()
  model.compiles = True
  folds = folding.find_folds(model, x)
  assert {path: fold.norm for path, fold in folds.items()} == {
    "layers/shared_a": "norms/shared_a",
    "layers/shared_b": "norms/shared_a",
    "layers/inside": "norms/inside",
  }
  expected = model(x)
  found = reference.integer_forward(model, folds=folds)(x)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=0.02)
