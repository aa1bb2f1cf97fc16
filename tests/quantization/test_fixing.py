"""Bits fixed and selected: the same outputs, and nothing compiled again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quantization.small_net import X, forward, make_net, same_bits

from asga_jax.quantization import fixing, layers, surgery


def _likeliest(model):
  def best(choice):
    return choice.candidates()[int(jnp.argmax(choice.logits[...]))]

  return {
    path: (best(layer.weight), best(layer.activation))
    for path, layer in layers.quantized_layers(model).items()
  }


def test_fixed_and_selected_agree():
  found = surgery.make_searchable(
    make_net(),
    X,
    bits=(2, 5, 32),
    end_bits=(4, 8),
    weight_quantizer="dorefa",
    activation_quantizer="pact",
  )
  middle = [p for p in layers.quantized_layers(found) if "_" not in p]
  for first, second, end in [(2, 32, 4), (32, 5, 8)]:
    policy = {"z_stem": (end, 12 - end), "a_head": (8, 4)}
    policy |= dict.fromkeys(middle, (first, second))
    fixed = fixing.fix_bits(found, policy)
    assert _likeliest(fixed) == policy
    selected = fixing.select_bits(found, policy)
    assert _likeliest(selected) == policy
    np.testing.assert_allclose(
      forward(fixed, X), forward(selected, X), rtol=1e-5, atol=1e-6
    )


def test_bits_temperature_and_policy_do_not_recompile():
  found = surgery.make_searchable(make_net(), X, bits=(2, 4, 8))
  traces = []

  @jax.jit
  def run(graphdef_and_state, x):
    traces.append(None)
    graphdef, state = graphdef_and_state
    return nnx.merge(graphdef, state, copy=True)(x)

  def evaluate(model):
    return np.asarray(run(nnx.split(model), X))

  ends = {"z_stem": (8, 8), "a_head": (8, 8)}
  outputs = [evaluate(found)]
  layers.product_of(found.blocks[0]).weight.temperature[...] = jnp.float32(0.1)
  shared = layers.product_of(found.shared)
  shared.weight.logits[...] = jnp.asarray([1.0, 0.0, 0.0])
  outputs.append(evaluate(found))
  for bits in [(2, 8), (8, 4)]:
    policy = {**same_bits(found, bits), **ends}
    outputs.append(evaluate(fixing.select_bits(found, policy)))
  # Of other candidates, in the same number.
  outputs.append(
    evaluate(surgery.make_searchable(make_net(), X, bits=(3, 5, 6)))
  )
  assert len(traces) == 1
  fixed = []
  for bits in [(2, 8), (8, 4)]:
    policy = {**same_bits(found, bits), **ends}
    fixed.append(evaluate(fixing.fix_bits(found, policy)))
  assert len(traces) == 2
  np.testing.assert_allclose(fixed, outputs[2:4], rtol=1e-5, atol=1e-6)
  assert len({output.tobytes() for output in outputs}) == len(outputs)


@pytest.mark.parametrize("change", [fixing.fix_bits, fixing.select_bits])
def test_bad_policies(change):
  found = surgery.make_searchable(make_net(), X, bits=(2, 4))
  good = {**same_bits(found, (2, 4)), "z_stem": (8, 8), "a_head": (8, 8)}
  missing = {path: bits for path, bits in good.items() if path != "blocks/0"}
  with pytest.raises(ValueError, match=r"lacks layers \['blocks/0'\]"):
    change(found, missing)
  with pytest.raises(ValueError, match=r"unknown layers \['neck'\]"):
    change(found, {**good, "neck": (4, 4)})
  with pytest.raises(ValueError, match=r"'blocks/0'.*weight.* 8 .*\(2, 4\)"):
    change(found, {**good, "blocks/0": (8, 4)})
  with pytest.raises(ValueError, match=r"'a_head'.*activation.* 4 .*\(8,\)"):
    change(found, {**good, "a_head": (8, 4)})
