"""Which networks can be searched, over which bits, and at whose costs."""

import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.allocation import space as search_space


@pytest.mark.parametrize(
  ("bits", "named"),
  [((), "bits"), ((2, 2, 4), "2"), ((1, 4), "1"), ((4, 9), "9"), ((33,), "33")],
)
def test_bad_candidates_are_named(tiny_network, tiny_batches, bits, named):
  with pytest.raises(ValueError, match=named):
    asga_jax.searchable(tiny_network, tiny_batches[0]["image"], bits=bits)


def test_a_rule_that_matches_nothing_is_named(tiny_network, tiny_batches):
  with pytest.raises(ValueError, match=r"'stage3'.* matches no layer"):
    asga_jax.searchable(
      tiny_network,
      tiny_batches[0]["image"],
      rules=[asga_jax.Rule("stage3", weight_bits=4)],
    )


def test_a_deployed_network_that_does_not_match_is_named(
  tiny_network, tiny_batches
):
  class Other(nnx.Module):
    def __init__(self, rngs):
      self.only = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
      return self.only(x)

  with pytest.raises(ValueError, match="deployed network does not fit"):
    asga_jax.searchable(
      tiny_network,
      tiny_batches[0]["image"],
      deployed=(Other(nnx.Rngs(0)), (8, 8, 3)),
    )


def test_costs_are_those_of_the_deployed_network(
  tiny_network, tiny_network_class, tiny_batches
):
  deployed = nnx.eval_shape(lambda: tiny_network_class(10, rngs=nnx.Rngs(0)))
  made = asga_jax.searchable(
    tiny_network,
    tiny_batches[0]["image"],
    bits=(2, 4),
    deployed=(deployed, (16, 16, 1)),
  )
  network, shape = made.deployed_network
  assert shape == (16, 16, 1)
  macs = {layer.path: layer.macs for layer in network.layers}
  assert macs == {
    "first": 256 * 9 * 4,
    "middle": 64 * 9 * 4 * 6,
    "inner": 30,
    "head": 50,
  }


def test_a_float_network_is_not_searchable(tiny_network):
  with pytest.raises(ValueError, match=r"TinyNetwork.*asga_jax\.searchable"):
    asga_jax.start_search(tiny_network, budget="bops=4bit")


class _Reader(nnx.Module):
  """Reads token ids, and keeps its layers in a plain dict."""

  def __init__(self, *, rngs):
    self.embed = nnx.Embed(7, 8, rngs=rngs)
    self.blocks = nnx.data(
      {name: nnx.Linear(8, 8, rngs=rngs) for name in ("a", "b", "c")}
    )

  def __call__(self, tokens):
    features = self.embed(tokens).mean(axis=1)
    for name in ("a", "b", "c"):
      features = nnx.relu(self.blocks[name](features))
    return features


def test_a_network_of_integer_input_and_a_dict_of_layers():
  tokens = np.arange(24, dtype=np.int32).reshape(8, 3) % 7
  model = asga_jax.searchable(_Reader(rngs=nnx.Rngs(0)), tokens)
  space = search_space.build(model, model.deployed_network[0])
  assert list(space.choices) == ["blocks/a", "blocks/b", "blocks/c"]
  assert [layer.macs for layer in space.network.layers] == [64, 64, 64]
