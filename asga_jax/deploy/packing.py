"""A fixed network as one file, its weights packed to the policy's bits."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from asga_jax import files
from asga_jax import policy as policy_lib
from asga_jax.deploy import integer, packed_bits
from asga_jax.network import arguments, program, reading
from asga_jax.quantization import (
  bit_choice,
  fixing,
  layers,
  quantizers,
)
from asga_jax.weights import files as weight_files
from asga_jax.xla import promotion

FORMAT = "asga_jax packed network"
VERSION = "1"
# What the policy and the metadata say, or what evaluation does not read.
_NOT_STORED = (
  bit_choice.BitLogits,
  bit_choice.GridData,
  bit_choice.Temperature,
  *program.UNSAVED,
  nnx.RngState,
)


class PackedError(ValueError):
  """A packed network that cannot be read or that does not fit."""


@promotion.usual()
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
  arguments.check_module(model)
  policy_lib.check(policy)
  files.check_path(path)
  found = integer.integer_layers(model)
  fixing.chosen_indices(model, _bits(policy))
  packed = _packable(model, found)
  arrays = {}
  for name, variable in _variables(model).items():
    if name in packed:
      layer = found[packed[name]]
      assert layer.codes is not None
      arrays[name] = packed_bits.pack(layer.codes, layer.weight_bits)
    else:
      arrays[name] = np.asarray(variable[...])
  text = json.loads(policy_lib.to_json(policy))
  metadata = {
    "format": FORMAT,
    "version": VERSION,
    "policy": json.dumps(text, separators=(",", ":")),
    "grids": json.dumps(_grids(model), separators=(",", ":")),
    "packed": json.dumps(packed, separators=(",", ":")),
  }
  weight_files.write(path, arrays, metadata)


def _packable(
  model: nnx.Module, found: Mapping[str, integer.IntegerLayer]
) -> dict[str, str]:
  """Find the variables that the codes of a layer can stand for.

  That is the kernel that it multiplies by, or from which it makes what it
  multiplies by, if one made from the codes is rounded to these again.

  Returns:
    Name of the variable -> path of the layer.
  """
  names = {id(v): name for name, v in _variables(model).items()}
  products = layers.quantized_layers(model)
  modules = {program.path_name(p): m for p, m in nnx.iter_modules(model)}
  packed: dict[str, str] = {}
  elsewhere = reading.read_elsewhere(integer.traced(model))
  for path, layer in found.items():
    if layer.codes is None or layer.weight_bits == quantizers.FLOAT_BITS:
      continue
    variable = _stored(modules[path], products[path])
    if getattr(variable, "shape", None) == layer.codes.shape:
      name = names.get(id(variable))
      if name is not None and name not in elsewhere:
        packed.setdefault(name, path)
  while True:
    trial = nnx.clone(model)
    codes = {name: found[path].codes for name, path in packed.items()}
    _set_kernels(trial, packed, codes)
    made = integer.integer_layers(trial)
    wrong = [
      path
      for path, layer in found.items()
      if layer.codes is not None
      and not np.array_equal(made[path].codes, layer.codes)  # type: ignore[arg-type]
    ]
    if not wrong:
      return packed
    # A layer may be wrong by what another one packs, of the same variable most
    # often.
    read = {names.get(id(_stored(modules[p], products[p]))) for p in wrong}
    told = [n for n, path in packed.items() if path in wrong or n in read]
    told = told or [*packed]
    for name in told:
      logging.warning(
        "layer %r does not multiply by its kernel as it is stored: its file"
        " holds %r in float32, not in %d bits",
        packed[name],
        name,
        found[packed[name]].weight_bits,
      )
      del packed[name]


@promotion.usual()
def load_packed(model: nnx.Module, path: str | os.PathLike[str]) -> nnx.Module:
  """Load a packed network.

  Args:
    model: the searchable network of the same architecture and quantizers, or
      one fixed at the same policy; it is not changed.
    path: a file that `save_packed` wrote. The two may change places.

  Returns:
    A copy in evaluation mode, fixed at the file's policy, whose kernels, where
    they are quantized, have the file's codes and all else its values: it
    computes the same.

  Raises:
    ValueError: no file, a damaged one or one of another kind; or a model with
      other layers, candidates, quantizers, variables or shapes.

  Source: docs/formats.md, which describes the file.
  """
  if isinstance(path, nnx.Module):
    model, path = path, model  # type: ignore[assignment]
  if not isinstance(model, nnx.Module):
    expected = "a searchable network and its file, load_packed(model, path)"
    raise PackedError(arguments.other_than(model, expected))
  source = files.check_path(path)
  metadata = weight_files.read_metadata(path)
  kind = (metadata.get("format"), metadata.get("version"))
  if kind != (FORMAT, VERSION):
    raise PackedError(
      f"{source} holds {kind[0]!r}, version {kind[1]!r}; expected {FORMAT!r},"
      f" version {VERSION!r}."
    )
  policy = policy_lib.from_json(metadata.get("policy", ""), source=source)
  try:
    model = fixing.fix_bits(model, _bits(policy))
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
  packed = _read_packed(model, metadata.get("packed"), source)
  quantized = layers.quantized_layers(model)
  codes: dict[str, np.ndarray] = {}
  for name, variable in variables.items():
    array, value = arrays[name], variable[...]
    if name in packed:
      (bits,) = quantized[packed[name]].weight.candidates()
      try:
        codes[name] = packed_bits.unpack(array, bits, value.shape)
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
  _set_kernels(model, packed, codes)
  made = integer.integer_layers(model)
  for name, wanted in codes.items():
    if not np.array_equal(made[packed[name]].codes, wanted):  # type: ignore[arg-type]
      raise PackedError(
        f"{source}: layer {packed[name]!r} has no kernel that"
        f" {type(model).__name__} quantizes to the packed codes; expected the"
        " steps and masks that they were made with."
      )
  model.eval()
  return model


def _read_packed(
  model: nnx.Module, text: str | None, source: str
) -> dict[str, str]:
  """Read which variables hold codes; older files do not say."""
  quantized = layers.quantized_layers(model)
  if text is None:
    return {
      f"{path}/kernel": path
      for path, layer in quantized.items()
      if layer.has_kernel
      and layer.weight.candidates() != (quantizers.FLOAT_BITS,)
    }
  try:
    packed = dict(json.loads(text))
    unknown = sorted(set(packed.values()) - set(quantized))
  except (ValueError, TypeError) as error:
    raise PackedError(f"{source}: damaged list of kernels: {error}.") from error
  unknown += sorted(set(packed) - set(_variables(model)))
  if unknown:
    raise PackedError(f"{source} has codes of unknown {unknown[:5]}.")
  return packed


def _bits(policy: policy_lib.Policy) -> dict[str, tuple[int, int]]:
  return {
    path: (layer.weight_bits, layer.activation_bits)
    for path, layer in policy.layers.items()
  }


def _stored(module: Any, product: layers.QuantizedProduct) -> Any:
  """Give the variable that a layer makes its kernel of, None without one."""
  return getattr(module, product.stored or "kernel", None)


def _variables(model: nnx.Module) -> dict[str, Any]:
  stored = nnx.All(nnx.Variable, nnx.Not(nnx.Any(*_NOT_STORED)))
  state = nnx.state(model, stored)
  found = {}
  for keys, _ in nnx.to_flat_state(state):
    node: Any = model
    for key in keys:
      inside = isinstance(node, dict | list | tuple | nnx.List | nnx.Dict)
      node = node[key] if inside else getattr(node, str(key))
    found[program.variable_name(keys)] = node
  return found


def _grids(model: nnx.Module) -> dict[str, Any]:
  """List how the operands of each layer are quantized."""
  return {
    path: [_grid(layer.weight), _grid(layer.activation)]
    for path, layer in layers.quantized_layers(model).items()
  }


def _grid(choice: bit_choice.BitChoice) -> list[Any]:
  """Give the quantizer, whether it is per channel, and the sign.

  Where the zero point is learned, the lowest code without the shift, which is
  one of the variables, stands in place of the sign.
  """
  quantizer = choice.quantizer
  lowest = float(bit_choice.read_grids(choice.grid[...]).lower[0])
  place = lowest if quantizer.learns_zero else lowest < 0
  return [type(quantizer).__name__, quantizer.per_channel, place]


def _set_grids(model: nnx.Module, text: str, source: str) -> None:
  """Take signs and zero points over; all else must be as the file says."""
  try:
    stored = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise PackedError(f"{source}: damaged grids: {error}.") from error
  for path, layer in layers.quantized_layers(model).items():
    for index, choice in enumerate((layer.weight, layer.activation)):
      try:
        *expected, place = stored[path][index]
      except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PackedError(f"{source} lacks the grids of {path!r}.") from error
      *found, _ = _grid(choice)
      if expected != found:
        raise PackedError(
          f"{source}: {path!r} was quantized by {expected}; the network is by"
          f" {found} (name, whether per channel)."
        )
      choice.set_codes(*_codes(choice, place))


def _codes(choice: bit_choice.BitChoice, place: float) -> Sequence[jax.Array]:
  """Give the lowest and the highest code, by the lowest or the sign."""
  (bits,) = choice.candidates()
  if choice.quantizer.learns_zero:
    codes = np.array([0, (1 << bits) - 1]) + place
    return tuple(jnp.asarray(codes[:, None], jnp.float32))
  return quantizers.levels(
    jnp.array([bits]), jnp.asarray(bool(place)), choice.quantizer.narrow
  )


def _rebuild(product: layers.QuantizedProduct, codes: np.ndarray) -> jax.Array:
  """Give a kernel that is quantized to these codes."""
  quantizer = product.weight.quantizer
  values = integer.weight_step(product, codes.shape) * (
    codes.astype(np.float32) + np.float32(quantizer.offset)
  )
  if not codes.any():
    # A grid without a zero has none of the values of a kernel of zeros.
    values = np.zeros_like(values)
  return quantizer.undo_transform(jnp.asarray(values))


def _set_kernels(
  model: nnx.Module, packed: Mapping[str, str], codes: Mapping[str, Any]
) -> None:
  """Give variables the values that layers quantize to codes, in place."""
  products = layers.quantized_layers(model)
  variables = _variables(model)
  for name, wanted in codes.items():
    variable = variables[name]
    made = _rebuild(products[packed[name]], wanted)
    variable[...] = made.astype(variable.dtype)
