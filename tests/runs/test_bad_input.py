"""What a newcomer gets wrong: one clear error, before any long work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.cost import costs as costs_lib


class _NoLayer(nnx.Module):
  def __init__(self):
    self.matrix = nnx.Param(jnp.ones((1, 4)))

  def __call__(self, images):
    return images @ self.matrix[...]


@pytest.fixture(scope="module")
def images(tiny_batches):
  return tiny_batches[0]["image"]


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (lambda x: x[0], r"does not run on .* \(8, 8, 1\): .* expected one array"),
    (lambda x: x.repeat(3, axis=3), r"does not run on .* \(16, 8, 8, 3\)"),
    (lambda x: x[:0], r"the shape \(0, 8, 8, 1\); expected one array"),
    (lambda x: x * np.nan, "not finite; initial ranges"),
    (lambda x: x.astype(object), "is of object; expected one array"),
    (lambda x: x.astype(str), "is of <U32; expected one array"),
    (lambda x: x.tolist(), "is a list; expected one array"),
    (lambda x: {"image": x}, "unexpected keyword argument 'image'"),
    (lambda x: x.shape, "is a tuple without arrays; expected one array"),
    (lambda x: None, "is None; expected one array"),
  ],
)
def test_an_example_that_the_network_does_not_take(
  tiny_network, images, change, named
):
  with pytest.raises(ValueError, match=named):
    asga_jax.searchable(tiny_network, change(images))


def test_a_missing_batch_is_found_where_flax_does_not_mind(images):
  """Its layers take one example for a batch of one."""
  layer = nnx.Conv(1, 4, (3, 3), rngs=nnx.Rngs(0))
  assert layer(images[0]).shape == (8, 8, 4)
  with pytest.raises(ValueError, match="finds no batch axis; expected one arr"):
    asga_jax.searchable(nnx.Sequential(layer), images[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
def test_an_example_of_another_dtype_counts_alike(tiny_network, images, dtype):
  """Flax's layers take these dtypes, and so do ours."""
  expected = asga_jax.layer_stats(asga_jax.searchable(tiny_network, images))
  model = asga_jax.searchable(tiny_network, np.abs(images).astype(dtype))
  assert asga_jax.layer_stats(model) == expected


@pytest.mark.parametrize(
  ("model", "settings", "named"),
  [
    (_NoLayer(), {}, "calls no layer that can be searched"),
    (lambda x: x, {}, "model is a function; expected a Flax nnx.Module"),
    (None, {"method": "encode"}, "method='encode'; expected the name"),
    (None, {"rules": ["head"]}, r"rules=\['head'\]; expected a list"),
    (
      None,
      {"rules": asga_jax.Rule("head")},
      "expected a list of asga_jax.Rule",
    ),
    (None, {"rules": "head"}, "expected a list of asga_jax.Rule"),
    (None, {"rules": [asga_jax.Rule("heads")]}, "'heads'.* matches no layer"),
    (None, {"bits": (1, 4)}, "bits has 1"),
    (None, {"bits": 4.5}, "bits has 4.5"),
  ],
)
def test_a_model_rules_or_bits_that_cannot_be(
  tiny_network, images, model, settings, named
):
  with pytest.raises(ValueError, match=named):
    asga_jax.searchable(model or tiny_network, images, **settings)


def test_bad_bits_are_known_before_the_network_is_run(
  tiny_network, monkeypatch
):
  monkeypatch.setattr("asga_jax.network.program.trace", None)
  with pytest.raises(ValueError, match="bits has 9"):
    asga_jax.searchable(tiny_network, np.zeros((2, 8, 8, 1)), bits=(9,))


@pytest.mark.parametrize(
  ("deployed", "named"),
  [
    (lambda model: model, "expected \\(network, shape of one input\\)"),
    (lambda model: (model, (1, 8, 8, 1)), "without the batch, 3 sizes"),
    (lambda model: (model, 8), "without the batch, 3 sizes"),
    (
      lambda model: (model, (8, 8, 3)),
      r"costs cannot be counted .* shape \(1, 8, 8, 3\)",
    ),
    (
      lambda model: (nnx.Linear(1, 2, rngs=nnx.Rngs(0)), (8, 8, 1)),
      "deployed network does not fit",
    ),
  ],
)
def test_a_deployed_network_that_does_not_fit(
  tiny_network, images, deployed, named
):
  with pytest.raises(ValueError, match=named):
    asga_jax.searchable(tiny_network, images, deployed=deployed(tiny_network))


def _table(model, more):
  paths = [layer.path for layer in asga_jax.layer_stats(model)]
  table = {
    (p, bw, ba): 1.0 for p in paths for bw in (2, 4, 8) for ba in (2, 4, 8)
  }
  return {**table, **more}


@pytest.mark.parametrize(
  ("more", "named"),
  [
    ({("inner", 4, 4): -1.0}, "ms = -1.0 of layer 'inner'"),
    ({("inner", 4, 4): float("nan")}, "ms = nan of layer 'inner'"),
    ({("inner", 4, 9): 1.0}, "activation_bits = 9: expected one of"),
    ({"inner": 1.0}, "key 'inner': expected \\(layer, weight bits"),
  ],
)
def test_a_latency_that_cannot_be_is_an_error_at_once(
  tiny_searchable, more, named
):
  with pytest.raises(ValueError, match=named):
    asga_jax.latency_cost(_table(tiny_searchable, more))


def test_a_table_of_numpy_numbers_is_one():
  table = {("a", np.int64(4), np.int32(8)): np.float32(0.5)}
  layer = costs_lib.LayerStats("a", 10, 5)
  assert asga_jax.latency_cost(table).layer_cost(layer, 4, 8) == 0.5


@pytest.mark.parametrize(
  ("costs", "budget", "named"),
  [
    (asga_jax.Cost("energy", lambda *_: 1), "energy=1", "expected a list of"),
    ([lambda *_: 1], "bops=4bit", "expected a list of asga_jax.Cost"),
    ([], None, "budget None: no text; expected KIND=AMOUNT"),
    ([], "energy=4bit", "no such cost among those supplied"),
    (
      [asga_jax.Cost("energy", lambda layer, bw, ba: {4: 1.0}[bw])],
      "energy=9",
      r"of layer 'first' at \(8, 8\) bits is missing: .* KeyError: 8",
    ),
    (
      [asga_jax.Cost("energy", lambda layer, bw, ba: -1)],
      "energy=9",
      "of layer 'first' .* is -1: expected a finite number",
    ),
  ],
)
def test_costs_and_budgets_that_cannot_be(
  tiny_searchable, costs, budget, named
):
  with pytest.raises(ValueError, match=named):
    asga_jax.start_search(tiny_searchable, budget=budget, costs=costs)


def test_a_policy_needs_a_searchable_network(tiny_network):
  with pytest.raises(
    ValueError, match="not searchable; expected what asga_jax"
  ):
    asga_jax.with_policy(tiny_network, None)


@pytest.mark.parametrize("batch", [(1, 2), {"image": 1}, np.zeros(3)])
def test_other_batches_need_a_loss_of_their_own(tiny_network, batch):
  with pytest.raises(ValueError, match=r"expects a dict of .*loss_fn"):
    asga_jax.cross_entropy(tiny_network, batch)


@pytest.mark.parametrize(
  ("loss_fn", "named"),
  [
    (lambda model, x: x.mean(), "expected a pair \\(loss, figures\\)"),
    (lambda model, x: (x.mean(), x.mean()), "return loss, {}"),
    (lambda model, x: (x.mean(axis=1), {}), r"'loss' of .* shape \(4,\)"),
    (lambda model, x: (x.mean(), {"all": x}), r"'all' of .* shape \(4, 2\)"),
  ],
)
def test_a_loss_function_that_returns_something_else(
  perceptron, loss_fn, named
):
  search = asga_jax.start_search(perceptron, loss_fn, budget="bops=4bit")
  batch = jax.ShapeDtypeStruct((4, 2), jnp.float32)
  with pytest.raises(ValueError, match=named):
    search.step.lower(search.state, batch)
