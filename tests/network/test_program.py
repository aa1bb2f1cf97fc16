"""The traced program: calls in order, and what is known of operands."""

import draws
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asga_jax.network import examples, program, reading


class Net(nnx.Module):
  """Calls its layers in another order than their names have."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.z_first = nnx.Conv(
      3, 4, (3, 3), padding="CIRCULAR", kernel_init=draws.from_numpy, rngs=rngs
    )
    self.inner = nnx.Dict(
      shared=nnx.Linear(4, 4, kernel_init=draws.from_numpy, rngs=rngs)
    )
    self.a_last = nnx.Linear(4, 2, kernel_init=draws.from_numpy, rngs=rngs)
    self.alias = self.inner["shared"]
    self.unused = nnx.Linear(4, 2, kernel_init=draws.from_numpy, rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.calls = nnx.BatchStat(jnp.zeros(()))

  def __call__(self, x):
    self.calls[...] += 1
    x = self.norm(self.z_first(x)).mean(axis=(1, 2))
    return self.a_last(self.alias(jnp.sin(self.inner["shared"](x))))

  def first(self, x):
    return self.z_first(x)


def _bytes(model):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model)]


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 3)), jnp.float32)


def _trace(model, x=X, **settings):
  return program.trace(model, examples.as_example(x), **settings)


def test_calls_in_order_with_what_they_read():
  model = Net()
  before = _bytes(nnx.state(model))
  calls = []

  def note(path, call, output):
    calls.append((path, call.first.shape, call.second.shape, output.shape))

  traced = _trace(model, note=note)
  shared = calls[1][0]
  assert shared in ("alias", "inner/shared")
  # A circular convolution pads its input before its product.
  assert calls == [
    ("z_first", (2, 7, 7, 3), (3, 3, 3, 4), (2, 5, 5, 4)),
    (shared, (2, 4), (4, 4), (2, 4)),
    (shared, (2, 4), (4, 4), (2, 4)),
    ("a_last", (2, 4), (4, 2), (2, 2)),
  ]
  assert list(traced.readers) == ["z_first", shared, "a_last"]
  found = reading.read(traced)
  np.testing.assert_array_equal(
    found.kernel("a_last"), model.a_last.kernel[...]
  )
  assert found.kernels["a_last"][0].known.source == "a_last/kernel"
  # The handed-in model is as it was: its statistics and its products.
  assert _bytes(nnx.state(model)) == before
  assert model.a_last.dot_general is jax.lax.dot_general


def test_a_shared_layer_is_found_once():
  found = program.find_callers(Net())
  assert len(found) == 4
  assert {"z_first", "a_last", "unused"} < set(found)


def test_other_method():
  assert list(_trace(Net(), method="first").readers) == ["z_first"]


def test_without_arrays():
  shapes = []
  _trace(
    nnx.eval_shape(Net),
    jax.ShapeDtypeStruct(X.shape, X.dtype),
    note=lambda path, call, output: shapes.append(output.shape),
  )
  assert shapes == [(2, 5, 5, 4), (2, 4), (2, 4), (2, 2)]


@pytest.mark.parametrize(
  ("path", "name"), [(("a", 0, "b"), "a/0/b"), ((), ""), (("head",), "head")]
)
def test_path_name(path, name):
  assert program.path_name(path) == name


class Block(nnx.Module):
  def __init__(self, how):
    self.linear = nnx.Linear(
      8, 8, kernel_init=draws.from_numpy, rngs=nnx.Rngs(0)
    )
    self.how = nnx.static(how)

  def __call__(self, x):
    return self.how(self.linear, x)


def _scanned(layer, x):
  def step(carry, _):
    return layer(carry), None

  return jax.lax.scan(step, x, length=5)[0]


HOW = {
  "remat": (lambda f, x: nnx.remat(lambda f, x: f(x))(f, x), 1),
  "jit": (lambda f, x: nnx.jit(lambda f, x: f(x))(f, x), 1),
  "vmap": (lambda f, x: jax.vmap(f)(x), 1),
  "cond": (lambda f, x: jax.lax.cond(x.sum() > 9, lambda x: x, f, x), 1),
  "scan": (_scanned, 5),
}


@pytest.mark.parametrize("how", HOW)
def test_layers_are_seen_within_transformations(how):
  transform, times = HOW[how]
  model = Block(transform)
  traced = _trace(model, jnp.ones((4, 8)))
  found = reading.read(traced)
  (product,) = found.products
  assert (product.path, product.layer) == ("linear", True)
  # 4 rows of 8 by a matrix of 8 x 8, at each turn of a loop.
  assert product.macs == times * 4 * 8 * 8
  np.testing.assert_array_equal(
    found.kernel("linear"), model.linear.kernel[...]
  )
  assert not reading.refusals(traced, found)


def test_a_stack_of_layers_is_refused_with_a_sentence():
  class Stacked(nnx.Module):
    def __init__(self):
      @nnx.vmap(in_axes=0, out_axes=0)
      def make(rngs):
        return nnx.Linear(8, 8, rngs=rngs)

      self.layers = make(nnx.Rngs(0).fork(split=3))

    def __call__(self, x):
      @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
      def step(layer, x):
        return layer(x)

      return step(self.layers, x)

  traced = _trace(Stacked(), jnp.ones((4, 8)))
  found = reading.read(traced)
  reasons = reading.refusals(traced, found)
  assert list(reasons) == ["layers"]
  assert "nnx.scan or nnx.vmap" in reasons["layers"]
  assert sum(product.macs for product in found.products) == 3 * 4 * 8 * 8


DERIVED = {
  "grad": lambda f, x: jax.grad(lambda x: f(x).sum())(x),
  "jvp": lambda f, x: jax.jvp(f, (x,), (x,))[1],
  "vjp": lambda f, x: jax.vjp(f, x)[1](x)[0],
  "rows": lambda f, x: jax.vmap(jax.grad(lambda x: f(x).sum()))(x),
}


@pytest.mark.parametrize("how", DERIVED)
def test_layers_within_a_derivative_are_refused_with_a_sentence(how):
  traced = _trace(Block(DERIVED[how]), jnp.ones((4, 8)))
  reasons = reading.refusals(traced, reading.read(traced))
  assert list(reasons) == ["linear"]
  assert "within jax.grad, jax.jvp or another" in reasons["linear"]


@pytest.mark.parametrize("method", ["linear", "cubic", "nearest"])
def test_an_interpolation_is_no_product(method):
  def run(self, x):
    x = nnx.relu(self.z_first(x))
    return self.a_last(jax.image.resize(x, (2, 9, 9, 4), method))

  net = type("Resizing", (Net,), {"__call__": run})()
  found = reading.read(_trace(net))
  assert [product.path for product in found.products] == ["z_first", "a_last"]
  assert len(found.inputs["a_last"]) == 1


NONNEGATIVE = {
  "relu": (nnx.relu, True),
  "relu6": (nnx.relu6, True),
  "sigmoid": (nnx.sigmoid, True),
  "softmax": (nnx.softmax, True),
  "square": (jnp.square, True),
  "pooled": (lambda x: nnx.relu(x).mean(0, keepdims=True), True),
  "joined": (lambda x: jnp.concatenate([abs(x), jnp.exp(x)]), True),
  "silu": (nnx.silu, False),
  "gelu": (nnx.gelu, False),
  "minus": (lambda x: nnx.relu(x) - 1, False),
  "half": (lambda x: jnp.concatenate([abs(x), x]), False),
}


@pytest.mark.parametrize("name", NONNEGATIVE)
def test_what_cannot_be_negative_is_proven(name):
  function, proven = NONNEGATIVE[name]

  class Twice(nnx.Module):
    def __init__(self):
      self.first = nnx.Linear(
        4, 4, kernel_init=draws.from_numpy, rngs=nnx.Rngs(0)
      )
      self.last = nnx.Linear(
        4, 4, kernel_init=draws.from_numpy, rngs=nnx.Rngs(1)
      )

    def __call__(self, x):
      return self.last(function(self.first(x)))

  model = Twice()
  x = jax.random.normal(jax.random.key(0), (64, 4))
  found = reading.read(_trace(model, x))
  assert found.is_nonnegative("last") == proven
  assert bool((function(model.first(x)) >= 0).all()) == proven
  assert not found.is_nonnegative("first")
