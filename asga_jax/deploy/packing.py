"""A fixed network as one file, its weights packed to the policy's bits."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax import policy as policy_lib
from asga_jax.deploy import integer
from asga_jax.network import calls as tracing
from asga_jax.quantization import bit_choice, layers, quantizers, surgery
from asga_jax.weights import files as weight_files

FORMAT = "asga_jax packed network"
VERSION = "1"
_KERNEL = "/kernel"
# What the policy and the metadata say, or what evaluation does not read.
_NOT_STORED = (
  bit_choice.BitLogits,
  bit_choice.GridData,
  bit_choice.Temperature,
  nnx.RngState,
)


class PackedError(ValueError):
  """A packed network that cannot be read or that does not fit."""


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
  """Pack signed codes without gaps.

  The lowest `bits` bits of each code in two's complement follow each other, the
  lowest bit of the first code in the lowest bit of the first byte.

  Args:
    codes: integers in -2^(bits-1)..2^(bits-1) - 1, any shape.
    bits: 2..8.

  Returns:
    ceil(codes.size * bits / 8) bytes, uint8; the last is filled with zeros.

  Raises:
    ValueError: other bits, or a code out of range.
  """
  _check_bits(bits)
  codes = np.asarray(codes)
  lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
  if codes.size and not lowest <= codes.min() <= codes.max() <= highest:
    raise ValueError(
      f"codes lie in {codes.min()}..{codes.max()}; expected {lowest}.."
      f"{highest}, which {bits} bits hold."
    )
  raw = codes.astype(np.int8).reshape(-1, 1).view(np.uint8)
  single = np.unpackbits(raw, axis=1, count=bits, bitorder="little")
  return np.packbits(single, bitorder="little")


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
  """Undo `pack`.

  Args:
    packed: uint8, from `pack`.
    bits: 2..8.
    shape: of the codes.

  Returns:
    The codes, int8.

  Raises:
    ValueError: other bits, or bytes of another number or type.
  """
  _check_bits(bits)
  count = math.prod(shape)
  expected = packed_bytes(count, bits)
  packed = np.asarray(packed)
  if packed.shape != (expected,) or packed.dtype != np.uint8:
    raise ValueError(
      f"packed is {packed.dtype} of shape {packed.shape}; expected uint8 of"
      f" shape ({expected},) for {count} codes of {bits} bits."
    )
  single = np.unpackbits(packed, count=count * bits, bitorder="little")
  raw = np.packbits(single.reshape(-1, bits), axis=1, bitorder="little")
  # The sign: up to the top of the byte and back.
  codes = (raw.reshape(shape) << (8 - bits)).astype(np.uint8).view(np.int8)
  return codes >> (8 - bits)


def packed_bytes(count: int, bits: int) -> int:
  """Count the bytes of `count` packed codes."""
  return -(-count * bits // 8)


def _check_bits(bits: int) -> None:
  if bits not in range(2, 9):
    raise ValueError(f"bits is {bits!r}; expected an integer in 2..8.")


def save_packed(
  model: nnx.Module,
  policy: policy_lib.Policy,
  path: str | os.PathLike[str],
) -> None:
  """Write a fixed network to one `.safetensors` file, whole or not at all.

  Kernels of 2 to 8 bits are packed; their steps, float kernels, biases, norms
  and what else the network holds stay as they are. Names are the paths of the
  variables; the metadata hold the policy and the grids.

  Args:
    model: fixed by the policy, as `asga_jax.with_policy` returns it.
    policy: what it was fixed by.
    path: the file; its directory must exist.

  Raises:
    ValueError: a model that is not fixed, another policy, another suffix, or
      a kernel whose codes do not determine it.
    OSError: if it cannot be written.
  """
  found = integer.integer_layers(model)
  surgery.chosen_indices(model, _bits(policy))
  packed = {
    path: layer.codes
    for path, layer in found.items()
    if layer.codes is not None and layer.weight_bits < quantizers.FLOAT_BITS
  }
  # What a loaded network will have.
  _set_kernels(nnx.clone(model), packed, os.fspath(path))
  arrays = {}
  for name, variable in _variables(model).items():
    layer = name.removesuffix(_KERNEL)
    if name.endswith(_KERNEL) and layer in packed:
      arrays[name] = pack(packed[layer], found[layer].weight_bits)
    else:
      arrays[name] = np.asarray(variable[...])
  text = json.loads(policy_lib.to_json(policy))
  metadata = {
    "format": FORMAT,
    "version": VERSION,
    "policy": json.dumps(text, separators=(",", ":")),
    "grids": json.dumps(_grids(model), separators=(",", ":")),
  }
  weight_files.write(path, arrays, metadata)


def load_packed(model: nnx.Module, path: str | os.PathLike[str]) -> nnx.Module:
  """Load a packed network.

  Args:
    model: the searchable network of the same architecture and quantizers, or
      one fixed at the same policy; it is not changed.
    path: a file that `save_packed` wrote.

  Returns:
    A copy in evaluation mode, fixed at the file's policy, whose kernels, where
    they are quantized, have the file's codes and all else its values: it
    computes the same.

  Raises:
    ValueError: no file, a damaged one or one of another kind; or a model with
      other layers, candidates, quantizers, variables or shapes.
  """
  if not isinstance(model, nnx.Module):
    raise PackedError(
      f"model is a {type(model).__name__}; expected the searchable network, and"
      " the file after it: load_packed(model, path)."
    )
  source = os.fspath(path)
  metadata = weight_files.read_metadata(path)
  kind = (metadata.get("format"), metadata.get("version"))
  if kind != (FORMAT, VERSION):
    raise PackedError(
      f"{source} holds {kind[0]!r}, version {kind[1]!r}; expected {FORMAT!r},"
      f" version {VERSION!r}."
    )
  policy = policy_lib.from_json(metadata.get("policy", ""), source=source)
  try:
    model = surgery.fix_bits(model, _bits(policy))
  except ValueError as error:
    raise PackedError(f"{source}: {error}") from error
  _set_grids(model, metadata.get("grids", ""), source)
  arrays = weight_files.read(path)
  variables = _variables(model)
  missing = sorted(set(variables) - set(arrays))
  unknown = sorted(set(arrays) - set(variables))
  if missing or unknown:
    raise PackedError(
      f"{source} does not fit {type(model).__name__}: it lacks {missing[:5]}"
      f" and has unknown {unknown[:5]}."
    )
  quantized = layers.kernel_layers(model)
  codes = {}
  for name, variable in variables.items():
    layer = name.removesuffix(_KERNEL)
    array, value = arrays[name], variable[...]
    bits = quantizers.FLOAT_BITS
    if name.endswith(_KERNEL) and layer in quantized:
      (bits,) = quantized[layer].weight.candidates()
    if bits < quantizers.FLOAT_BITS:
      try:
        codes[layer] = unpack(array, bits, value.shape)
      except ValueError as error:
        raise PackedError(f"{source}: {name}: {error}") from error
    elif (array.shape, array.dtype) != (value.shape, value.dtype):
      raise PackedError(
        f"{source}: {name} is {array.dtype} of shape {array.shape}; expected"
        f" {value.dtype} of shape {value.shape}."
      )
    else:
      variable[...] = jnp.asarray(array)
  # After the steps, which they are rebuilt from.
  _set_kernels(model, codes, source)
  model.eval()
  return model


def _bits(policy: policy_lib.Policy) -> dict[str, tuple[int, int]]:
  return {
    path: (layer.weight_bits, layer.activation_bits)
    for path, layer in policy.layers.items()
  }


def _variables(model: nnx.Module) -> dict[str, Any]:
  stored = nnx.All(nnx.Variable, nnx.Not(nnx.Any(*_NOT_STORED)))
  state = nnx.state(model, stored)
  return {
    tracing.path_name(keys): variable
    for keys, variable in nnx.to_flat_state(state)
  }


def _grids(model: nnx.Module) -> dict[str, Any]:
  """List how the operands of each layer are quantized."""
  return {
    path: [_grid(layer.weight), _grid(layer.activation)]
    for path, layer in layers.quantized_layers(model).items()
  }


def _grid(choice: bit_choice.BitChoice) -> list[Any]:
  """Give the quantizer, whether it is per channel, and the sign."""
  quantizer = choice.quantizer
  signed = bool(choice.grids().lower[0] < 0)
  return [type(quantizer).__name__, quantizer.per_channel, signed]


def _set_grids(model: nnx.Module, text: str, source: str) -> None:
  """Take the signs over; all else must be as the file says."""
  try:
    stored = json.loads(text)
  except json.JSONDecodeError as error:
    raise PackedError(f"{source}: damaged grids: {error}.") from error
  for path, layer in layers.quantized_layers(model).items():
    for index, choice in enumerate((layer.weight, layer.activation)):
      try:
        *expected, signed = stored[path][index]
      except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PackedError(f"{source} lacks the grids of {path!r}.") from error
      *found, _ = _grid(choice)
      if expected != found:
        raise PackedError(
          f"{source}: {path!r} was quantized by {expected}; the network is by"
          f" {found} (name, whether per channel)."
        )
      choice.set_signed(bool(signed))


def _rebuild(layer: layers.KernelLayer, codes: Any) -> jax.Array:
  """Give a kernel that is quantized to these codes."""
  quantizer = layer.weight.quantizer
  values = integer.weight_step(layer) * (
    codes.astype(np.float32) + np.float32(quantizer.offset)
  )
  if not codes.any():
    # A grid without a zero has none of the values of a kernel of zeros.
    values = np.zeros_like(values)
  kernel = quantizer.undo_transform(jnp.asarray(values))
  return kernel.astype(layer.kernel.dtype)


def _set_kernels(
  model: nnx.Module, codes: Mapping[str, np.ndarray], source: str
) -> None:
  """Give layers the kernels that are quantized to these codes, in place.

  Raises:
    PackedError: there is none in a layer; it names the layer.
  """
  quantized = layers.kernel_layers(model)
  for path, wanted in codes.items():
    quantized[path].kernel[...] = _rebuild(quantized[path], wanted)
  made = integer.integer_layers(model)
  for path, wanted in codes.items():
    if not np.array_equal(made[path].codes, wanted):  # type: ignore[arg-type]
      raise PackedError(
        f"{source}: layer {path!r} has no kernel that {type(model).__name__}"
        " quantizes to the packed codes; expected the steps and masks that they"
        " were made with."
      )
