"""Networks of several inputs and outputs: exported, run, compared with JAX."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import nnx

import asga_jax

IDS = np.array([[1, 2, 3], [4, 0, 5]], np.int32)
X = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
MASK = np.array([[1, 1, 0], [1, 1, 1]], bool)


class Mixed(nnx.Module):
  """Reads ids, features and a mask; gives a dict of several arrays."""

  def __init__(self, rngs):
    self.embed = nnx.Embed(6, 8, rngs=rngs)
    self.first = nnx.Linear(8, 16, rngs=rngs)
    self.middle = nnx.Linear(16, 16, rngs=rngs)
    self.last = nnx.Linear(16, 4, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, ids, features, *, mask, scale=1.0, train=True):
    x = self.embed(ids) + features * scale
    x = self.dropout(nnx.relu(self.first(x)), deterministic=not train)
    x = nnx.relu(self.middle(x)) * mask[..., None]
    logits = self.last(x.sum(axis=1))
    return {"logits": logits, "more": (x, jnp.argmax(logits, axis=-1))}


NAMED = {
  "ids": IDS,
  "features": X,
  "mask": MASK,
  "scale": 2.0,
  "train": False,
}


def fixed(example=NAMED, network=Mixed):
  return asga_jax.searchable(network(nnx.Rngs(0)), example, bits=(8,))


def run(made, fed, level="ORT_ENABLE_ALL"):
  options = onnxruntime.SessionOptions()
  options.graph_optimization_level = getattr(
    onnxruntime.GraphOptimizationLevel, level
  )
  session = onnxruntime.InferenceSession(made.SerializeToString(), options)
  names = [x.name for x in session.get_outputs()]
  return dict(zip(names, session.run(None, fed), strict=True))


@pytest.mark.parametrize(
  "level",
  [pytest.param("ORT_DISABLE_ALL", marks=pytest.mark.slow), "ORT_ENABLE_ALL"],
)
def test_named_inputs_and_nested_outputs_come_over_to_onnx(level):
  model = fixed()
  made = asga_jax.export_onnx(model, NAMED)
  fed = {
    "ids": np.concatenate([IDS, IDS[:1]]),
    "features": np.concatenate([X, -X[:1]]),
    "mask": np.concatenate([MASK, MASK[:1]]),
  }
  found = run(made, fed, level)
  wanted = model(**fed, scale=2.0, train=False)
  assert set(found) == {"logits", "more_0", "more_1"}
  for name, want in (
    ("logits", wanted["logits"]),
    ("more_0", wanted["more"][0]),
    ("more_1", wanted["more"][1]),
  ):
    np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-5)


def test_a_tuple_is_named_as_the_method_names_it():
  class Two(nnx.Module):
    def __init__(self, rngs):
      self.a = nnx.Linear(8, 8, rngs=rngs)
      self.b = nnx.Linear(8, 8, rngs=rngs)

    def score(self, left, pair):
      return self.b(nnx.relu(self.a(left))) * pair[1], pair[0]

  example = (X[:, 0], (X[:, 1], X[:, 2]))
  model = asga_jax.searchable(
    Two(nnx.Rngs(0)), example, bits=(8,), method="score"
  )
  made = asga_jax.export_onnx(model, example, method="score")
  fed = {"left": X[:, 0], "pair_0": X[:, 1], "pair_1": X[:, 2]}
  found = run(made, fed)
  first, second = model.score(*example)
  np.testing.assert_allclose(found["logits_0"], first, rtol=1e-4, atol=1e-5)
  # An input that is given back as it is.
  np.testing.assert_array_equal(found["logits_1"], second)


def test_names_of_inputs_do_not_collide_with_names_in_the_graph():
  class Colliding(nnx.Module):
    def __init__(self, rngs):
      self.a = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, value, Shape, logits):
      x = nnx.relu(self.a(value)) + 3.0
      return {"logits": x.reshape(-1, 4, 2), "value": Shape + logits}

  example = {"value": X[:, 0], "Shape": X[:, 1], "logits": X[:, 2]}
  model = asga_jax.searchable(Colliding(nnx.Rngs(0)), example, bits=(8,))
  made = asga_jax.export_onnx(model, example)
  names = [x.name for x in (*made.graph.input, *made.graph.output)]
  assert len(set(names)) == 5
  found = list(run(made, example).values())
  wanted = model(**example)
  for got, want in zip(found, jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_stablehlo_is_called_as_the_network_without_its_flags():
  model = fixed()
  content = asga_jax.export_stablehlo(model, NAMED)
  program = jax.export.deserialize(bytearray(content))
  arrays = {"ids": IDS[:1], "features": X[:1], "mask": MASK[:1]}
  found = program.call(**arrays)
  wanted = model(**arrays, scale=2.0, train=False)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found,
    wanted,
  )


def test_shapes_alone_are_enough():
  blank = {
    name: jax.ShapeDtypeStruct(value.shape, value.dtype)
    if isinstance(value, np.ndarray)
    else value
    for name, value in NAMED.items()
  }
  made = asga_jax.export_onnx(fixed(), blank)
  assert {x.name for x in made.graph.input} == {"ids", "features", "mask"}


def test_costs_are_counted_on_a_deployed_network_of_several_inputs():
  longer = {
    "ids": np.zeros((1, 12), np.int32),
    "features": np.zeros((1, 12, 8), np.float32),
    "mask": np.ones((1, 12), bool),
    "train": False,
  }
  model = asga_jax.searchable(
    Mixed(nnx.Rngs(0)),
    NAMED,
    bits=(2, 8),
    deployed=(Mixed(nnx.Rngs(1)), longer),
  )
  macs = {layer.path: layer.macs for layer in asga_jax.layer_stats(model)}
  # Of twelve tokens, where the example has three.
  assert macs["first"] == 12 * 8 * 16
  assert macs["middle"] == 12 * 16 * 16
  assert macs["last"] == 16 * 4
  with pytest.raises(ValueError, match="expected an example of the inputs"):
    asga_jax.searchable(
      Mixed(nnx.Rngs(0)), NAMED, deployed=(Mixed(nnx.Rngs(1)), (12,))
    )


def test_a_shape_for_a_network_of_several_inputs_is_told():
  with pytest.raises(ValueError, match="does not run on a batch of any size"):
    asga_jax.export_onnx(fixed(), (3,))
  with pytest.raises(ValueError, match="cannot be exported for a batch"):
    asga_jax.export_stablehlo(fixed(), (3,))


def test_a_network_that_gives_no_array_is_told():
  class Nothing(nnx.Module):
    def __init__(self, rngs):
      self.a = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
      self.a(x)

  with pytest.raises(ValueError, match="gives no array"):
    asga_jax.export_onnx(Nothing(nnx.Rngs(0)), (8,))


def test_an_output_of_a_registered_class_is_named_by_its_fields():
  @jax.tree_util.register_dataclass
  @dataclasses.dataclass
  class Out:
    logits: jax.Array
    hidden: jax.Array

  class Net(nnx.Module):
    def __init__(self, rngs):
      self.a = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
      x = self.a(x)
      return Out(x * 2, x)

  model = Net(nnx.Rngs(0))
  found = run(asga_jax.export_onnx(model, (8,)), {"image": X[:, 0]})
  np.testing.assert_allclose(found["hidden"], model(X[:, 0]).hidden, rtol=1e-4)
  np.testing.assert_allclose(found["logits"], model(X[:, 0]).logits, rtol=1e-4)
