"""Networks whose weights the tests of weights save and load."""

import pytest
from flax import nnx
from weights.arrays import as_trained


@pytest.fixture
def trained(tiny_network_class):
  return as_trained(tiny_network_class(rngs=nnx.Rngs(7)))


@pytest.fixture
def fresh(tiny_network_class):
  return tiny_network_class(rngs=nnx.Rngs(8))
