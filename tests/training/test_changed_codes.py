"""The share of codes that a perturbation changes against a count of all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.quantization import layers
from asga_jax.training import changed_codes as code_changes
from asga_jax.training import state as state_lib


def test_changed_codes_counts_codes_of_the_likeliest_candidate(perceptron):
  graphdef, params, rest = state_lib.split_model(perceptron)
  logits = jax.tree.map(
    lambda leaf: jnp.arange(leaf.size, dtype=leaf.dtype), params.logits
  )
  params = params._replace(logits=logits)
  moved = jax.tree.map(lambda leaf: leaf + 0.02, params.weights)

  @jax.jit
  def changed_codes(displaced):
    return code_changes.changed_codes(graphdef, rest, params, displaced)

  share = changed_codes(params._replace(weights=moved))
  changed = total = 0
  for kernel, layer in layers.kernel_layers(perceptron).values():
    # The last of the candidates: 4 bits, of the narrow symmetric range.
    step = np.asarray(layer.weight.steps())[-1]
    kernel = np.asarray(kernel[...])
    codes = [
      np.round(np.clip(k / step, -7, 7)) for k in (kernel, kernel + 0.02)
    ]
    changed += int((codes[0] != codes[1]).sum())
    total += kernel.size
    assert layer.weight.candidates() == (2, 4)
  assert 0 < changed / total < 1
  assert float(share) == pytest.approx(changed / total, abs=1e-6)
  assert changed_codes(params) == 0


@pytest.mark.slow
def test_a_large_kernel_counts_by_its_size_though_it_is_sampled():
  # 80 000 weights in rows of 8, of which every 19th is looked at, and 32.
  class Network(nnx.Module):
    def __init__(self, rngs):
      self.large = nnx.Linear(10_000, 8, rngs=rngs)
      self.small = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
      return self.small(nnx.relu(self.large(x)))

  model = asga_jax.searchable(
    Network(nnx.Rngs(0)),
    jnp.ones((2, 10_000)),
    rules=[asga_jax.Rule(".*", weight_bits=(2, 4), activation_bits=(2, 4))],
  )
  graphdef, params, rest = state_lib.split_model(model)
  # All of the small kernel's codes change sign, and none of the large one's.
  moved = jax.tree.map(
    lambda leaf: -leaf - jnp.sign(leaf) if leaf.size == 32 else leaf,
    params.weights,
  )
  share = code_changes.changed_codes(
    graphdef, rest, params, params._replace(weights=moved)
  )
  assert code_changes.SAMPLED < 80_000
  assert float(share) == pytest.approx(32 / 80_032, rel=1e-5)


def test_a_network_without_quantized_layers_changes_none():
  model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
  graphdef, params, rest = state_lib.split_model(model)
  assert code_changes.changed_codes(graphdef, rest, params, params) == 0
