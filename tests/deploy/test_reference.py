"""Integer sums against NumPy's int64, outputs against fake quantization."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_kind import IMAGES, fix, searchable
from flax import nnx

import asga_jax
from asga_jax.deploy import folding, integer, reference
from asga_jax.network import kinds, program
from asga_jax.quantization import layers

# Of the largest value: float32 sums of up to 54 products, in another order.
TOLERANCE = 2e-6
KERNELS = (
  "plain",
  "grouped",
  "depthwise",
  "masked",
  "transposed",
  "turned",
  "line",
  "attention/query",
  "attention/out",
  "split",
  "swap",
  "join",
  "head",
)
INPUTS = {
  "plain": (2, 6, 6, 4),
  "transposed": (2, 4, 3, 6),
  "turned": (2, 4, 3, 5),
  "line": (2, 9, 6),
  "swap": (2, 7, 2, 3),
  "join": (2, 7, 5, 4),
}


@pytest.fixture(scope="module")
def fixed():
  return fix(searchable(), 5, 8, plain=(4, 6), line=(8, 8), swap=(6, 4))


@pytest.fixture(scope="module")
def doubled():
  """On grids without a zero."""
  return fix(searchable("dorefa", False), 8, 8)


def _module(model, path):
  found = {program.path_name(p): m for p, m in nnx.iter_modules(model)}
  return found[path]


def _input(path):
  shape = INPUTS.get(path, (2, 6, 6, 6) if path in KERNELS[:4] else (2, 7, 6))
  # Beyond the range of the codes too.
  return 3 * jax.random.normal(jax.random.key(5), shape)


def _codes_by_hand(grid, x):
  scaled = np.asarray(x) * (np.float32(1) / grid.step)
  return np.rint(np.clip(scaled, grid.lower, grid.upper)).astype(np.int64)


def _window(x, w, layer, pads):
  """Convolve [N, *places, C] by [*window, C / groups, O] in int64."""
  rank = w.ndim - 2
  groups = layer.feature_group_count

  def each(value):
    return (value or 1,) * rank if np.ndim(value) == 0 else tuple(value)

  strides, spread = each(layer.strides), each(layer.kernel_dilation)
  x = np.pad(x, [(0, 0), *pads, (0, 0)])
  places = [
    (size - (k - 1) * d - 1) // s + 1
    for size, k, d, s in zip(
      x.shape[1:-1], w.shape[:-2], spread, strides, strict=True
    )
  ]
  result = np.zeros((len(x), *places, w.shape[-1]), np.int64)
  for where in itertools.product(*map(range, w.shape[:-2])):
    cut = tuple(
      slice(i * d, i * d + (n - 1) * s + 1, s)
      for i, d, n, s in zip(where, spread, places, strides, strict=True)
    )
    parts = zip(
      np.split(x[(slice(None), *cut)], groups, axis=-1),
      np.split(w[where], groups, axis=-1),
      strict=True,
    )
    result += np.concatenate([a @ b for a, b in parts], axis=-1)
  return result


def _scatter(x, w, layer):
  """Add the kernel to the output at every place of the input, in int64."""
  w = w.swapaxes(-1, -2) if layer.transpose_kernel else w[::-1, ::-1]
  strides = layer.strides or (1, 1)
  sides = [
    (n - 1) * s + k
    for n, s, k in zip(x.shape[1:-1], strides, w.shape[:2], strict=True)
  ]
  result = np.zeros((len(x), *sides, w.shape[-1]), np.int64)
  for i, j in np.ndindex(*x.shape[1:-1]):
    top, left = i * strides[0], j * strides[1]
    result[:, top : top + w.shape[0], left : left + w.shape[1]] += np.einsum(
      "nc,ijco->nijo", x[:, i, j], w
    )
  return result


def _by_hand(path, layer, x, w):
  w = w.astype(np.int64)
  if isinstance(layer, nnx.ConvTranspose):
    return _scatter(x, w, layer)
  if isinstance(layer, nnx.Conv):
    # 3 wide, and padded to keep the size; 9 places at stride 2 become 5.
    pads = {"line": [(1, 1)], "grouped": [(2, 2), (1, 1)]}
    return _window(x, w, layer, pads.get(path, [(1, 1)] * 2))
  equation = {
    "swap": "...hd,hdab->...ba",
    "split": "...c,cab->...ab",
    "join": "...ab,abo->...o",
    "attention/query": "...c,cab->...ab",
    "attention/out": "...ab,abo->...o",
    "head": "...c,co->...o",
  }[path]
  return np.einsum(equation, x, w)


@pytest.mark.parametrize(
  ("name", "arithmetic"),
  [
    pytest.param("fixed", "int32", marks=pytest.mark.slow),
    pytest.param("doubled", "halves", marks=pytest.mark.slow),
    pytest.param("doubled", "float32", marks=pytest.mark.slow),
  ],
)
def test_each_layer_by_hand(name, arithmetic, request, monkeypatch):
  model = request.getfixturevalue(name)
  if arithmetic == "halves":
    monkeypatch.setattr(reference, "_exact_arithmetic", lambda _: "halves")
    arithmetic = "float32"
  found = integer.integer_layers(model)
  seen = []
  made = reference.integer_forward(
    model, arithmetic=arithmetic, observer=seen.append
  )
  for path in KERNELS:
    x = _input(path)
    if path == "attention/out":
      x = x.reshape(2, 7, 2, 3)
    layer, integers = found[path], _module(made, path)
    seen.clear()
    output = integers(x)
    (told,) = seen
    assert told.path == path
    codes = _codes_by_hand(layer.activation, x)
    np.testing.assert_array_equal(told.codes[0], codes)
    assert told.accumulator.dtype == jnp.int32
    by_hand = _by_hand(path, _module(model, path), codes, layer.integers)
    np.testing.assert_array_equal(told.accumulator, by_hand)
    assert np.abs(by_hand).max() <= layer.largest_accumulator()
    expected = _module(model, path)(x)
    np.testing.assert_allclose(
      output, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max()
    )


@pytest.mark.slow
def test_products_of_attention_by_hand(fixed):
  found = integer.integer_layers(fixed)
  keys = jax.random.split(jax.random.key(6), 3)
  query, key, value = (jax.random.normal(k, (2, 5, 2, 3)) for k in keys)
  seen = []
  made = reference.integer_forward(fixed, observer=seen.append)
  mask = jnp.tril(jnp.ones((5, 5), bool))[None, None]
  for settings in ({}, {"mask": mask}, {"is_causal": True}):
    seen.clear()
    output = made.attention.attention_fn(query, key, value, **settings)
    scores, mixed = seen
    assert scores.path == "attention/attention_fn/qk"
    assert mixed.path == "attention/attention_fn/pv"
    layer = found[scores.path]
    q = _codes_by_hand(layer.activation, query)
    k = _codes_by_hand(layer.second, key)
    np.testing.assert_array_equal(
      scores.accumulator, np.einsum("nqhd,nkhd->nhqk", q, k)
    )
    p, v = (np.asarray(x, np.int64) for x in mixed.codes)
    np.testing.assert_array_equal(
      v, _codes_by_hand(found[mixed.path].second, value)
    )
    np.testing.assert_array_equal(
      mixed.accumulator, np.einsum("nhqk,nkhd->nqhd", p, v)
    )
    expected = fixed.attention.attention_fn(query, key, value, **settings)
    # Half a step of a probability may round to another code.
    np.testing.assert_allclose(output, expected, atol=1e-5)
  fewer = key[:, :, :1], value[:, :, :1]
  np.testing.assert_allclose(
    made.attention.attention_fn(query, *fewer),
    fixed.attention.attention_fn(query, *fewer),
    atol=1e-5,
  )


@pytest.mark.slow
def test_the_network_as_a_whole(fixed):
  for folds in (None, folding.find_folds(fixed, IMAGES)):
    expected = fixed(IMAGES)
    found, told = reference.accumulators(fixed, IMAGES, folds=folds)
    # A value on the border of two codes may go the other way.
    np.testing.assert_allclose(
      found, expected, atol=0.02 * np.abs(expected).max()
    )
    assert {x.path for x in told} == set(layers.quantized_layers(fixed))


@pytest.mark.slow
def test_float_layers_stay_as_they_are():
  model = fix(searchable(), 5, head=(32, 8), plain=(4, 32), line=(32, 32))
  made = reference.integer_forward(model)
  for path in ("head", "plain", "line"):
    x = _input(path)
    np.testing.assert_array_equal(
      _module(made, path)(x), _module(model, path)(x)
    )
  _, told = reference.accumulators(model, IMAGES)
  assert not {x.path for x in told} & {"head", "plain", "line"}


def test_the_model_is_not_changed_and_norms_evaluate(fixed):
  model = nnx.clone(fixed)
  model.train()
  before = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model)))
  reference.integer_forward(model)(IMAGES)
  jax.tree.map(
    np.testing.assert_array_equal, before, nnx.as_pure(nnx.state(model))
  )
  assert not model.norm.use_running_average


@pytest.mark.slow
def test_which_norms_are_folded(fixed):
  folds = folding.find_folds(fixed, IMAGES)
  assert {path: fold.norm for path, fold in folds.items()} == {
    "plain": "norm",
    "depthwise": "depthwise_norm",
  }
  made = reference.integer_forward(fixed, folds=folds)
  for path, norm in (("plain", "norm"), ("depthwise", "depthwise_norm")):
    x = _input(path)
    expected = _module(fixed, norm)(_module(fixed, path)(x))
    np.testing.assert_allclose(
      _module(made, path)(x),
      expected,
      rtol=0,
      atol=4 * TOLERANCE * np.abs(expected).max(),
    )


def test_unknown_arithmetic_and_sums_that_are_too_large(fixed, monkeypatch):
  with pytest.raises(ValueError, match="arithmetic is 'int8'"):
    reference.integer_forward(fixed, arithmetic="int8")
  monkeypatch.setitem(reference._LIMITS, "int32", 1000)
  with pytest.raises(ValueError, match=r"layer '.*' may sum to"):
    reference.integer_forward(fixed)


def test_halves_sum_exactly_what_float32_cannot():
  random = np.random.default_rng(0)
  codes = random.integers(200, 256, (4, 4608))
  kernel = random.integers(100, 128, (4608, 3)).astype(np.int8)
  exact = codes @ kernel.astype(np.int64)
  assert exact.min() > 2**24
  inputs = jnp.asarray(codes, jnp.float32)

  def float_sum(*parts):
    return sum(np.asarray(inputs @ part, np.int64) for part in parts)

  assert (float_sum(jnp.asarray(kernel, jnp.float32)) != exact).any()
  np.testing.assert_array_equal(float_sum(*integer.halves(kernel)), exact)


@pytest.mark.parametrize(
  ("limit", "used"), [("own", "float32"), ("less", "halves"), (2, "int32")]
)
def test_sums_too_large_for_float32(fixed, monkeypatch, limit, used):
  found = integer.integer_layers(fixed)
  path = max(KERNELS, key=lambda path: np.abs(found[path].integers).max())
  largest = found[path].largest_accumulator()
  limit = {"own": largest + 1, "less": largest}.get(limit, limit)
  monkeypatch.setitem(reference._LIMITS, "float32", limit)
  made = reference.integer_forward(fixed, arithmetic="float32")
  layer = _module(made, path)
  assert getattr(layer, kinds.attribute_of(layer)).arithmetic == used


def test_steps_whose_product_float32_cannot_hold():
  x = IMAGES.reshape(len(IMAGES), -1)[:, :8] * np.float32(1e-30)
  layer = nnx.Linear(8, 4, use_bias=False, rngs=nnx.Rngs(0))
  layer.kernel[...] *= 1e-4
  model = asga_jax.searchable(nnx.Sequential(layer), x, bits=(8,), end_bits=8)
  want = np.asarray(model(x), np.float64)
  assert 0 < np.abs(want).max() < 1e-32
  found = np.asarray(reference.integer_forward(model)(x), np.float64)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-38)
