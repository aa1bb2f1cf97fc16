"""Packed codes, and the file of a packed network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_kind import (
  ALL_BITS,
  IMAGES,
  EveryKind,
  Kinds,
  fill,
  fix,
  policy_of,
  searchable,
)
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from safetensors import numpy as safetensors_numpy

import asga_jax
from asga_jax import policy as policy_lib
from asga_jax.deploy import integer, packed_bits, packing
from asga_jax.models import resnet
from asga_jax.quantization import layers, methods
from asga_jax.weights import files as weight_files


@st.composite
def _codes(draw):
  bits = draw(st.integers(2, 8))
  half = 2 ** (bits - 1)
  shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
  count = int(np.prod(shape, dtype=int))
  values = draw(
    st.lists(st.integers(-half, half - 1), min_size=count, max_size=count)
  )
  return np.array(values, np.int8).reshape(shape), bits


@given(_codes())
def test_round_trip(case):
  codes, bits = case
  packed = packed_bits.pack(codes, bits)
  assert packed.dtype == np.uint8
  assert packed.size == -(-codes.size * bits // 8)
  found = packed_bits.unpack(packed, bits, codes.shape)
  assert found.dtype == np.int8
  np.testing.assert_array_equal(found, codes)


@given(_codes())
def test_the_layout_is_one_whole_number(case):
  """The bytes, lowest first, are the codes as digits of base 2^bits."""
  codes, bits = case
  number = sum(
    (int(code) % 2**bits) << (bits * i)
    for i, code in enumerate(codes.reshape(-1))
  )
  packed = packed_bits.pack(codes, bits)
  assert int.from_bytes(packed.tobytes(), "little") == number


def test_bad_codes_and_bytes():
  for bits in (1, 9, 32):
    with pytest.raises(ValueError, match=f"bits is {bits}"):
      packed_bits.pack(np.zeros(3, np.int8), bits)
    with pytest.raises(ValueError, match=f"bits is {bits}"):
      packed_bits.unpack(np.zeros(3, np.uint8), bits, (3,))
  with pytest.raises(ValueError, match=r"lie in 0..4; expected -4..3"):
    packed_bits.pack(np.arange(5), 3)
  for wrong in (np.zeros(1, np.uint8), np.zeros(2, np.int8)):
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(2,\)"):
      packed_bits.unpack(wrong, 3, (5,))


@pytest.fixture(scope="module")
def fixed():
  others = {"plain": (32, 32), "grouped": (6, 5), "head": (8, 8)}
  return fix(searchable(), 5, 6, **others)


@pytest.fixture(scope="module")
def file(fixed, tmp_path_factory):
  path = tmp_path_factory.mktemp("packed") / "net.safetensors"
  asga_jax.save_packed(fixed, policy_of(fixed), path)
  return path


def _other(per_channel=True, quantizer="hwgq"):
  """The searchable network with other values throughout."""
  model = nnx.clone(searchable(quantizer, per_channel))
  state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
  nnx.update(model, jax.tree.map(lambda x: x + 0.5, state))
  for layer in layers.quantized_layers(model).values():
    choice = layer.activation
    codes = choice.grid[...][1:]
    choice.set_codes(0 * codes[0], codes[1] - codes[0])
  return model


@nnx.jit
def _call(model, x):
  return model(x)


def test_a_loaded_network_computes_the_same(fixed, file):
  before = integer.integer_layers(fixed)
  for start in (_other(), fixed):
    loaded = asga_jax.load_packed(start, file)
    loaded.eval()
    after = integer.integer_layers(loaded)
    for path, layer in before.items():
      if layer.codes is not None:
        np.testing.assert_array_equal(after[path].codes, layer.codes)
        np.testing.assert_array_equal(
          after[path].dequantized(), layer.dequantized()
        )
      assert after[path].activation.lower == layer.activation.lower
    np.testing.assert_array_equal(_call(loaded, IMAGES), _call(fixed, IMAGES))


@pytest.mark.parametrize(
  "per_channel", [True, pytest.param(False, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("quantizer", methods.QUANTIZERS)
@pytest.mark.parametrize("bits", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_every_quantizer(quantizer, per_channel, bits, tmp_path):
  model = searchable(quantizer, per_channel, ALL_BITS, Kinds)
  fixed = fix(model, bits)
  # One kernel of zeros: its codes alone do not tell how it was squashed.
  fixed.linear.kernel[...] = jnp.zeros_like(fixed.linear.kernel[...])
  path = tmp_path / "net.safetensors"
  packing.save_packed(fixed, policy_of(fixed), path)
  loaded = packing.load_packed(model, path)
  loaded.eval()
  x = np.random.default_rng(1).standard_normal((2, 24), np.float32)
  np.testing.assert_allclose(loaded(x), fixed(x), rtol=0, atol=1e-6)
  before, after = (integer.integer_layers(m) for m in (fixed, loaded))
  for name in before:
    np.testing.assert_array_equal(after[name].codes, before[name].codes)


def test_the_file_holds_packed_weights_and_the_policy(fixed, file):
  arrays = safetensors_numpy.load_file(file)
  metadata = weight_files.read_metadata(file)
  assert policy_lib.from_json(metadata["policy"]) == policy_of(fixed)
  assert arrays["plain/kernel"].dtype == np.float32
  for path, layer in integer.integer_layers(fixed).items():
    if layer.weight_bits < 32 and layer.codes is not None:
      packed = arrays[f"{path}/kernel"]
      assert packed.dtype == np.uint8
      found = packed_bits.unpack(packed, layer.weight_bits, layer.codes.shape)
      np.testing.assert_array_equal(found, layer.codes)
  assert not [name for name in arrays if name.endswith("logits")]


@pytest.mark.slow
def test_bytes_of_weights_are_those_promised(tmp_path):
  network = fill(lambda: resnet.resnet8(10, in_channels=1, rngs=nnx.Rngs(0)))
  model = asga_jax.searchable(
    network,
    jax.random.normal(jax.random.key(0), (2, 8, 8, 1)),
    bits=(5,),
    weight_quantizer="hwgq",
    activation_quantizer="hwgq",
  )
  policy = policy_of(model)
  path = tmp_path / "net.safetensors"
  packing.save_packed(model, policy, path)
  stored = sum(
    array.nbytes
    for name, array in safetensors_numpy.load_file(path).items()
    if name.endswith("/kernel")
  )
  promised = sum(x.weights * x.weight_bits for x in policy.layers.values()) / 8
  assert promised <= stored <= 1.02 * promised


def test_a_network_with_another_mask_is_named(fixed, file):
  model = nnx.clone(fixed)
  model.masked.mask = 1 - model.masked.mask
  with pytest.raises(packing.PackedError, match="'masked' has no kernel"):
    packing.load_packed(model, file)


def test_a_truncated_file(file, tmp_path):
  path = tmp_path / "net.safetensors"
  for part in (0.0, 0.01, 0.5, 0.999):
    content = file.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"net.safetensors cannot be read"):
      packing.load_packed(searchable(), path)
  with pytest.raises(ValueError, match=r"none.safetensors cannot be read"):
    packing.load_packed(searchable(), tmp_path / "none.safetensors")


def _rewritten(file, tmp_path, arrays=None, **metadata):
  path = tmp_path / "net.safetensors"
  found = safetensors_numpy.load_file(file)
  found.update(arrays or {})
  found = {name: x for name, x in found.items() if x is not None}
  weight_files.write(
    path, found, {**weight_files.read_metadata(file), **metadata}
  )
  return path


def test_files_of_another_kind(file, tmp_path):
  path = tmp_path / "plain.safetensors"
  weight_files.write(path, {"a": np.zeros(2)})
  with pytest.raises(packing.PackedError, match="holds None"):
    packing.load_packed(searchable(), path)
  for metadata, message in (
    ({"version": "9"}, "version '9'"),
    ({"policy": "{"}, "not JSON"),
    ({"grids": "{"}, "damaged grids"),
    ({"grids": "{}"}, "lacks the grids of"),
    ({"grids": "3"}, "lacks the grids of"),
  ):
    path = _rewritten(file, tmp_path, **metadata)
    with pytest.raises(ValueError, match=message):
      packing.load_packed(searchable(), path)


def test_arrays_that_do_not_fit(file, tmp_path):
  for arrays, message in (
    ({"head/bias": None}, r"lacks \['head/bias'\]"),
    ({"more": np.zeros(1)}, r"unknown \['more'\]"),
    ({"head/bias": np.zeros(4, np.float32)}, "head/bias is float32 of shape"),
    ({"head/bias": np.zeros(3, np.int32)}, "head/bias is int32 of shape"),
    ({"head/kernel": np.zeros(3, np.uint8)}, "head/kernel: packed is uint8"),
  ):
    path = _rewritten(file, tmp_path, arrays)
    with pytest.raises(packing.PackedError, match=message):
      packing.load_packed(searchable(), path)


def test_other_networks_and_policies(fixed, file, tmp_path):
  kinds = searchable("hwgq", True, ALL_BITS, Kinds)
  with pytest.raises(packing.PackedError, match=r"lacks layers .*'conv'"):
    packing.load_packed(kinds, file)
  with pytest.raises(packing.PackedError, match="has no weight candidate of"):
    packing.load_packed(fix(searchable(), 8, 8), file)
  with pytest.raises(packing.PackedError, match=r"was quantized by \['HWGQ'"):
    packing.load_packed(_other(False), file)
  with pytest.raises(ValueError, match="lacks layers"):
    packing.load_packed(EveryKind(nnx.Rngs(0)), file)
  path = tmp_path / "none.safetensors"
  with pytest.raises(ValueError, match="has no weight candidate of"):
    packing.save_packed(fixed, policy_of(fix(searchable(), 8, 8)), path)
  with pytest.raises(ValueError, match="is not fixed"):
    packing.save_packed(searchable(), policy_of(fixed), path)
  with pytest.raises(ValueError, match=r"expected a .safetensors file"):
    packing.save_packed(fixed, policy_of(fixed), tmp_path / "net.bin")
  with pytest.raises(OSError, match="missing"):
    packing.save_packed(
      fixed, policy_of(fixed), tmp_path / "missing" / "net.safetensors"
    )
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_kernel_that_its_codes_do_not_determine(tmp_path, caplog):
  fixed = fix(searchable("dorefa", True, ALL_BITS, Kinds), 4)
  # Steps over a part of the range that tanh fills: no code reaches its end.
  choice = layers.product_of(fixed.conv).weight
  choice.parameter[...] = 0.4 * choice.parameter[...]
  file = tmp_path / "net.safetensors"
  with caplog.at_level("WARNING"):
    packing.save_packed(fixed, policy_of(fixed), file)
  assert "'conv' does not multiply by its kernel as it is stored" in caplog.text
  arrays = weight_files.read(file)
  assert arrays["conv/kernel"].dtype == np.float32
  assert arrays["linear/kernel"].dtype == np.uint8
  loaded = packing.load_packed(fixed, file)
  np.testing.assert_array_equal(loaded(IMAGES), fixed(IMAGES))


def test_the_policy_is_compact(file):
  text = weight_files.read_metadata(file)["policy"]
  assert text == json.dumps(json.loads(text), separators=(",", ":"))
