"""How many forward and backward passes a compiled step makes."""

import re

import jax
import pytest

from asga_jax import sharpness
from asga_jax.training import compiled, losses, sharding
from asga_jax.training import state as state_lib

# What the passes over the program leave does not depend on how well machine
# code is made of it, which takes most of the time.
UNOPTIMIZED = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}


def _products(compiled) -> tuple[int, int]:
  """Counts convolutions, and products of two matrices, in the compiled HLO.

  The expected cost is made of products of other ranks.
  """
  text = compiled.as_text()
  convolutions = re.findall(r" convolution\(", text)
  matrices = re.findall(r"f32\[\d+,\d+\]\S* dot\(", text)
  return len(convolutions), len(matrices)


@pytest.fixture(scope="module")
def one_pass(tiny_searchable, tiny_batches):
  """The products of the plain `value_and_grad` of the same network."""
  graphdef, params, rest = state_lib.split_model(tiny_searchable)

  def loss(params, rest, batch):
    model = state_lib.merge_model(graphdef, params, rest)
    return losses.cross_entropy(model, batch)[0]

  step = jax.jit(jax.value_and_grad(loss))
  lowered = step.lower(params, rest, tiny_batches[0])
  return _products(lowered.compile(UNOPTIMIZED))


def test_a_joint_step_compiles_to_exactly_two_passes(
  tiny_search, tiny_batches, one_pass
):
  batch = sharding.place_batch(tiny_batches[0], tiny_search.mesh)
  lowered = tiny_search.step.lower(tiny_search.state, batch)
  # Forward, kernel gradient and input gradient of two layers each.
  assert one_pass == (6, 6)
  assert _products(lowered.compile()) == (12, 12)


@pytest.mark.parametrize(
  ("preset", "settings", "bilevel", "passes"),
  [
    pytest.param("sgd", {}, False, 1, marks=pytest.mark.slow),
    pytest.param("sam", {}, False, 2, marks=pytest.mark.slow),
    pytest.param("gsam", {}, False, 2, marks=pytest.mark.slow),
    pytest.param("sagm", {}, False, 2, marks=pytest.mark.slow),
    pytest.param("asga", {}, True, 4, marks=pytest.mark.slow),
    pytest.param(
      "asga", {"ascent": "previous"}, False, 1, marks=pytest.mark.slow
    ),
    pytest.param(
      "asga", {"ascent": "momentum"}, True, 2, marks=pytest.mark.slow
    ),
    pytest.param("asga", {"ascent_every": 2}, False, 2, marks=pytest.mark.slow),
  ],
)
def test_passes_of_the_other_forms(
  tiny_search, tiny_batches, one_pass, preset, settings, bilevel, passes
):
  parts = tiny_search.parts._replace(
    transform=sharpness.preset(preset, mask=state_lib.PERTURBED, **settings),
    # It is made of products of matrices too.
    expected_use=None,
    logits_every=3,
  )
  step = compiled.compile_step(parts, tiny_search.mesh, bilevel=bilevel)
  count = 2 if bilevel else 1
  state = tiny_search.state._replace(
    sharpness=parts.transform.init(tiny_search.state.params)
  )
  lowered = step.lower(state, *tiny_batches[:count])
  assert one_pass == (6, 6)
  convolutions, matrices = _products(lowered.compile(UNOPTIMIZED))
  # These need no gradient of the first layer's input from their first pass:
  # its quantizer's comes from the second.
  spared = 1 if preset in ("sam", "gsam") else 0
  assert convolutions == passes * one_pass[0] - spared
  assert matrices == passes * one_pass[1]
