"""A new file beside the network: what rounding explains, and what not."""

import jax
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.deploy.onnx import trial

SHAPE = (6,)


class Steep(nnx.Module):
  """Its sine turns a millionth of its first layer into anything."""

  def __init__(self, factor, rngs):
    self.first = nnx.Linear(6, 6, rngs=rngs)
    self.last = nnx.Linear(6, 4, rngs=rngs)
    self.factor = factor

  def __call__(self, x):
    return self.last(jax.numpy.sin(self.first(x) * self.factor))


@pytest.mark.parametrize("factor", [1.0, 1e7])
def test_another_network_is_refused_unless_rounding_explains_it(
  factor, monkeypatch
):
  network = Steep(factor, nnx.Rngs(0))
  other = trial._with_moved_parameters(network)
  run = trial._run_in_jax
  wanted = []

  def run_another(model, method, example):
    wanted.append(model)
    if factor == 1:
      return 2 * run(model, method, example)
    # At first as far off as rounding.
    return run(network if len(wanted) > 1 else other, method, example)

  monkeypatch.setattr(trial, "_run_in_jax", run_another)
  if factor > 1:
    assert asga_jax.export_onnx(network, SHAPE)
    assert len(wanted) == 2
    return
  with pytest.raises(ValueError, match="off what the network gives in JAX"):
    asga_jax.export_onnx(network, SHAPE)


def test_parameters_move_by_a_millionth():
  network = Steep(1.0, nnx.Rngs(0))
  moved = trial._with_moved_parameters(network)
  pairs = zip(
    jax.tree.leaves(nnx.state(network, nnx.Param)),
    jax.tree.leaves(nnx.state(moved, nnx.Param)),
    strict=True,
  )
  for before, after in pairs:
    np.testing.assert_allclose(after, before, rtol=1.2e-6)
  assert np.any(network.first.kernel[...] != moved.first.kernel[...])
