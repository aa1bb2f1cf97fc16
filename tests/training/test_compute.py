"""Steps whose layers compute in bfloat16, with a state in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.quantization import compute, layers
from asga_jax.training import loop


def _search(model, **changed):
  return asga_jax.start_search(
    model,
    budget="bops=3bit",
    settings=asga_jax.SearchSettings(steps=4, **changed),
  )


def test_a_step_in_bfloat16_keeps_state_and_figures_in_float32(
  perceptron, tiny_batches
):
  search = _search(perceptron, compute_dtype="bfloat16")
  state, figures = jax.eval_shape(search.step, search.state, tiny_batches[0])
  for leaf, before in zip(
    jax.tree.leaves(state), jax.tree.leaves(search.state), strict=True
  ):
    assert leaf.dtype == before.dtype
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      assert leaf.dtype == jnp.float32
  assert {str(leaf.dtype) for leaf in figures.values()} == {"float32"}
  program = str(search.step.trace(search.state, tiny_batches[0]).jaxpr)
  products = [line for line in program.splitlines() if "dot_general" in line]
  narrow = [line for line in products if "bf16[16," in line]
  # Of two layers, forward and back; what is left is the expected cost.
  assert len(narrow) >= 4
  assert not any("f32[16," in line.replace("bf16", "") for line in products)
  # What is put together again computes as the network did.
  model = asga_jax.search.trained_model(search, search.state)
  images = tiny_batches[0]["image"]
  assert model(images).dtype == jnp.float32


def test_kernels_are_quantized_before_they_are_narrowed():
  """A change that bfloat16 does not hold takes a weight to another code."""
  model = nnx.Linear(1, 2, use_bias=False, rngs=nnx.Rngs(0))
  model.kernel[...] = jnp.array([[1.0, -1.0]])
  quantized = asga_jax.searchable(
    model,
    jnp.ones((4, 1)),
    rules=[asga_jax.Rule(".*", weight_bits=4, activation_bits=8)],
  )
  compute.narrow(quantized, "bfloat16")
  weight = layers.product_of(quantized).weight
  step = float(np.ravel(weight.parameter[...])[0])
  found = []
  for beside in (-1e-5, 1e-5):
    value = jnp.float32(2.5 * step * (1 + beside))
    found.append(jnp.bfloat16(value))
    quantized.kernel[...] = jnp.full((1, 2), value)
    result = quantized(jnp.ones((1, 1), jnp.bfloat16))
    assert result.dtype == jnp.bfloat16
    found.append(result)
  assert found[0] == found[2]
  np.testing.assert_allclose(
    np.float32(found[3] - found[1])[0, 0], step, rtol=0.05
  )


def test_types_of_their_own_are_kept_and_a_network_without_is_refused():
  class Mixed(nnx.Module):
    def __init__(self, rngs):
      self.a = nnx.Linear(2, 2, rngs=rngs)
      self.b = nnx.Linear(2, 2, dtype=jnp.float16, rngs=rngs)

  class Own(nnx.Module):
    pass

  model = Mixed(nnx.Rngs(0))
  compute.narrow(model, "bfloat16")
  assert (model.a.dtype, model.b.dtype) == (jnp.bfloat16, jnp.float16)
  with pytest.raises(ValueError, match="no layer of Own has the fields dtype"):
    compute.narrow(Own(), "bfloat16")
  with pytest.raises(ValueError, match="compute_dtype='half'; expected one of"):
    asga_jax.FinetuneSettings(compute_dtype="half")


@pytest.mark.slow
def test_steps_agree_with_float32_to_what_bfloat16_holds(
  tiny_searchable, tiny_batches
):
  found = {}
  for name, changed in {
    "wide": {"sharpness": {"gap_from_gradients": True}},
    "narrow": {"compute_dtype": "bfloat16"},
    "difference": {
      "compute_dtype": "bfloat16",
      "sharpness": {"gap_from_gradients": False},
    },
    "wide difference": {},
  }.items():
    search = _search(tiny_searchable, **changed)
    records = []
    loop.run(
      search.step,
      search.state,
      tiny_batches,
      4,
      search.mesh,
      on_records=records.extend,
    )
    found[name] = {
      figure: np.array([float(r[figure]) for r in records])
      for figure in ("loss", "gap", "gradient_norm", "multiplier")
    }
  wide, narrow = found["wide"], found["narrow"]
  np.testing.assert_allclose(narrow["loss"], wide["loss"], rtol=1e-2)
  # Later ones have crossed other borders between codes.
  np.testing.assert_allclose(
    narrow["gradient_norm"][0], wide["gradient_norm"][0], rtol=5e-2
  )
  assert (narrow["loss"] != wide["loss"]).any()

  def off(one, other):
    """The first step's, whose weights are the same."""
    return abs(found[one]["gap"][0] / found[other]["gap"][0] - 1)

  # The estimate of gradients is the nearer, and is what is taken.
  assert off("narrow", "wide") < off("difference", "wide difference")
