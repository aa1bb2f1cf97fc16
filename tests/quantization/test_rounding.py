"""Kernels rounded so that outputs stay: closed forms and a brute force."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.quantization import compensation, layers

RANDOM = np.random.default_rng(0)
# Features that tell much of each other, as those of images do.
MIXED = RANDOM.normal(size=(6, 6)) + 2
X = (RANDOM.normal(size=(512, 6)) @ MIXED).astype(np.float32)


class Net(nnx.Module):
  """A layer alone."""

  def __init__(self, rngs):
    self.only = nnx.Linear(6, 4, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return self.only(x)


class Biased(Net):
  """The same with a bias, which corrects means."""

  def __init__(self, rngs):
    self.only = nnx.Linear(6, 4, rngs=rngs)


def _fixed(net, x, weight_bits, activation_bits, **settings):
  rules = [
    asga_jax.Rule(
      ".*", weight_bits=weight_bits, activation_bits=activation_bits
    )
  ]
  return asga_jax.searchable(net, x, rules=rules, **settings)


def _apart(network, reference, x):
  """Give the squared error that is left when means are made equal."""
  error = np.asarray(network(x) - reference(x), np.float64)
  return np.square(error - error.mean(axis=0)).mean()


def _round(columns, gram, cross, grid):
  solved = compensation.solve_columns(columns, gram, cross)
  return compensation.round_columns(solved, grid)


def test_the_nearest_where_features_are_apart():
  """Of an even gram there is nothing that another weight could make good."""
  grid = compensation.Grid(np.full((1, 3), 0.5, np.float32), -2.0, 1.0, 0.0)
  columns = RANDOM.normal(size=(1, 5, 3))
  found = _round(columns, 3 * np.eye(5)[None], 3 * np.eye(5)[None], grid)
  np.testing.assert_allclose(found, grid.nearest(columns), atol=1e-6)


def test_close_to_the_best_of_all_roundings():
  """Held to a brute force over all codes of kernels of four weights."""
  grid = compensation.Grid(np.full((1, 1), 0.4, np.float32), -2.0, 1.0, 0.0)
  values = 0.4 * np.arange(-2, 2)
  every = np.array(list(itertools.product(values, repeat=4)))
  ours, nearest, best = [], [], []
  for _ in range(40):
    root = RANDOM.normal(size=(16, 4)) @ (RANDOM.normal(size=(4, 4)) + 1)
    gram = root.T @ root / 16
    column = RANDOM.uniform(-0.6, 0.4, size=4)
    found = _round(column[None, :, None], gram[None], gram[None], grid)[0, :, 0]
    assert np.abs(every - found).sum(axis=1).min() < 1e-6

    def loss(values, gram=gram, column=column):
      return (values - column) @ gram @ (values - column)

    ours.append(loss(found))
    nearest.append(loss(grid.nearest(column[None])[0]))
    best.append(min(loss(each) for each in every))
  assert np.mean(best) <= np.mean(ours) < 0.7 * np.mean(nearest)


def test_the_target_is_that_of_least_squares():
  """With a grid so fine that rounding does nothing, as NumPy solves it."""
  rows = RANDOM.normal(size=(400, 6)) @ MIXED
  read = np.rint(rows / 3) * 3
  column = RANDOM.normal(size=(6, 2))
  gram, cross = read.T @ read / 400, read.T @ rows / 400
  grid = compensation.Grid(np.full((1, 2), 1e-6, np.float32), -1e9, 1e9, 0.0)
  (found,) = _round(column[None], gram[None], cross[None], grid)
  weight = np.sqrt(compensation.DAMPING * np.diag(gram).mean() * 400)
  wanted, *_ = np.linalg.lstsq(
    np.vstack([read, weight * np.eye(6)]),
    np.vstack([rows @ column, weight * column]),
    rcond=None,
  )
  np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
  "settings",
  [{}, {"per_channel": False}, {"weight_quantizer": "pact"}],
  ids=str,
)
def test_outputs_are_nearer_and_kernels_lie_on_their_grids(settings):
  net = Biased(nnx.Rngs(0))
  low = _fixed(net, X, 3, 4, **settings)
  found = asga_jax.round_weights(low, [X[:256], X[256:]])
  assert _apart(found, net, X) < 0.8 * _apart(low, net, X)
  # Rounding again changes no code.
  kernel = np.asarray(found.only.kernel[...])
  choice = layers.quantized_layers(found)["only"].weight
  np.testing.assert_allclose(choice(jnp.asarray(kernel)), kernel, atol=1e-6)
  assert not np.array_equal(kernel, low.only.kernel[...])
  np.testing.assert_array_equal(low.only.kernel[...], net.only.kernel[...])


def test_batches_weigh_by_their_size():
  low = _fixed(Net(nnx.Rngs(0)), X, 3, 4)
  one, other = (
    asga_jax.round_weights(low, parts).only.kernel[...]
    for parts in ([X[:480]], [X[:400], X[400:480]])
  )
  np.testing.assert_allclose(one, other, atol=1e-6)


class Convolutions(nnx.Module):
  """A convolution, one a channel, and a projection after them."""

  def __init__(self, rngs):
    self.first = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
    self.each = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
    self.last = nnx.LinearGeneral(8, (2, 3), rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.each(nnx.relu(self.first(x))))
    return self.last(x.mean(axis=(1, 2)))


@pytest.mark.slow
def test_networks_are_nearer_to_the_float_one():
  x = RANDOM.normal(size=(64, 8, 8, 3)).cumsum(axis=1).cumsum(axis=2)
  x = x.astype(np.float32)
  gains = []
  for seed in range(2):
    net = Convolutions(nnx.Rngs(seed))
    low = _fixed(net, x[:32], 3, 8)
    found = asga_jax.round_weights(low, [x[:32]])
    for path in ("first", "each", "last"):
      choice = layers.quantized_layers(found)[path].weight
      matrix = layers.kernel_layers(found)[path].kernel_matrix()
      np.testing.assert_allclose(choice(matrix), matrix, atol=1e-6)
    # On images that chose nothing.
    gains.append(_apart(found, net, x[32:]) / _apart(low, net, x[32:]))
  assert np.mean(gains) < 0.75


class Tied(nnx.Module):
  """Two layers of one kernel, a float layer, and a masked one."""

  def __init__(self, rngs):
    self.one = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
    self.two = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
    self.two.kernel = self.one.kernel
    self.exact = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
    self.turned = nnx.Einsum("bi,io->bo", (6, 6), rngs=rngs)
    self.scaled = nnx.WeightNorm(nnx.Linear(6, 6, rngs=rngs), rngs=rngs)

  def __call__(self, x):
    return self.scaled(self.turned(self.exact(self.two(self.one(x)))))


def test_others_are_left_as_they_are():
  net = Tied(nnx.Rngs(0))
  rules = [
    asga_jax.Rule("exact", weight_bits=32, activation_bits=8),
    asga_jax.Rule(".*", weight_bits=3, activation_bits=8),
  ]
  low = asga_jax.searchable(net, X, rules=rules)
  found = asga_jax.round_weights(low, [X])
  np.testing.assert_array_equal(found(X), low(X))


def test_a_quantizer_that_transforms_weights_is_left_alone():
  low = _fixed(Net(nnx.Rngs(0)), X, 3, 8, weight_quantizer="dorefa")
  found = asga_jax.round_weights(low, [X])
  np.testing.assert_array_equal(found(X), low(X))


def test_layers_within_a_transformation_are_left_alone(caplog):
  class Mapped(nnx.Module):
    def __init__(self, rngs):
      self.mapped = nnx.Linear(6, 6, rngs=rngs)
      self.plain = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
      x = nnx.vmap(lambda layer, row: layer(row), in_axes=(None, 0))(
        self.mapped, x[:, None]
      )[:, 0]
      return self.plain(x)

  x = (X @ MIXED[:, :6] / 10).astype(np.float32)
  low = _fixed(Mapped(nnx.Rngs(0)), x, 3, 8)
  found = asga_jax.round_weights(low, [x])
  kernels, before = layers.kernel_layers(found), layers.kernel_layers(low)
  np.testing.assert_array_equal(
    kernels["mapped"].kernel[...], before["mapped"].kernel[...]
  )
  assert _apart(found.plain, low.plain, x) > 0
  assert "rounded to the nearest: mapped" in caplog.text


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_inputs_of_any_scale(scale):
  """The kernels do not depend on the unit that inputs are in."""
  net = Net(nnx.Rngs(0))
  kernels = []
  for x in (X, (X * np.float32(scale))):
    found = asga_jax.round_weights(_fixed(net, x, 3, 8), [x])
    kernels.append(found.only.kernel[...])
  np.testing.assert_allclose(*kernels, rtol=1e-5)
  assert (kernels[0] != _fixed(net, X, 3, 8).only.kernel[...]).any()


def test_inputs_without_variance_round_to_the_nearest():
  low = _fixed(Biased(nnx.Rngs(0)), X, 3, 8)
  for constant in (np.zeros((8, 6)), np.full((1, 6), 2.0)):
    found = asga_jax.round_weights(low, [constant.astype(np.float32)])
    np.testing.assert_allclose(found(X), low(X), rtol=1e-5, atol=1e-5)


def test_large_means_beside_small_deviations():
  x = (X / 100 + 1000).astype(np.float32)
  net = Biased(nnx.Rngs(0))
  low = _fixed(net, x, 3, 32)
  found = asga_jax.round_weights(low, [x])
  assert np.isfinite(found.only.kernel[...]).all()
  assert _apart(found, net, x) < 1.5 * _apart(low, net, x)


def test_means_that_nothing_corrects_are_kept():
  """A layer without a bias, and inputs whose means are most of them."""
  means = 10 * np.abs(RANDOM.normal(size=6))
  x = (0.3 * X @ MIXED[:, :6] / 10 + means).astype(np.float32)
  net = Net(nnx.Rngs(0))
  low = _fixed(net, x, 3, 8)
  found = asga_jax.round_weights(low, [x])
  error, before = (
    np.square(np.asarray(each(x) - net(x))).mean() for each in (found, low)
  )
  assert error < 0.5 * before


def test_errors():
  net = Net(nnx.Rngs(0))
  low = _fixed(net, X, 3, 8)
  with pytest.raises(ValueError, match="not finite"):
    asga_jax.round_weights(low, [np.full((4, 6), np.nan, np.float32)])
  with pytest.raises(ValueError, match="batch"):
    asga_jax.round_weights(low, [])
  with pytest.raises(ValueError, match="not searchable"):
    asga_jax.round_weights(net, [X])
  with pytest.raises(ValueError, match=r"'only' has the candidates .*8\)"):
    asga_jax.round_weights(_fixed(net, X, (4, 8), 8), [X])
