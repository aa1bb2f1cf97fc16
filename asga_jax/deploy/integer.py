"""The integers that a network fixed by a policy multiplies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.network import kinds as layer_kinds
from asga_jax.network import program, reading
from asga_jax.quantization import bit_choice, layers, quantizers, remembered

FLOAT_BITS = quantizers.FLOAT_BITS


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
  """The codes of an activation, which has one step and a zero of code 0.

  x becomes step * clip(round(x / step), lower, upper), where x is multiplied by
  the float32 inverse of the step, and half is rounded to even.
  """

  # 2..8, or 32 for float: then the activation stays as it is.
  bits: int
  step: np.ndarray  # shape=(), dtype=float32
  # The lowest and the highest code; 0 for float.
  lower: int
  upper: int

  @property
  def is_float(self) -> bool:
    """Whether the activation is not quantized."""
    return self.bits == FLOAT_BITS

  @property
  def signed(self) -> bool:
    """Whether codes may be negative: int8, else uint8."""
    return self.lower < 0


@dataclasses.dataclass(frozen=True, eq=False)
class IntegerLayer:
  """What one quantized layer multiplies.

  The kernel that the fake-quantized network multiplies by, in evaluation mode,
  is `weight_step * (codes + offset)`, and also `integer_step * integers`, where
  all are integers. A layer of 32-bit weights has the float kernel in `codes`, a
  step of 1 and no offset. A product of two activations ('Product') has no
  kernel: `codes` is None, and `second` is the grid of its second operand.
  """

  path: str
  # Of `layer_kinds.ATTRIBUTES`: 'Conv', 'ConvTranspose', 'Linear' (of any
  # axes), 'Einsum'; or 'Product', of two activations.
  kind: str
  # 2..8, or 32 for float.
  weight_bits: int
  # int8 in the layout of the kernel; float32 at 32 bits.
  codes: np.ndarray | None
  # float32, shape () or as many axes as the kernel, 1 where it is summed over.
  weight_step: np.ndarray
  # 0, or 1/2 for a grid without a zero (DoReFa).
  offset: float
  # The axes of the kernel that become features of the output.
  outputs: tuple[int, ...]
  activation: Grid
  second: Grid | None

  @property
  def is_integer(self) -> bool:
    """Whether both operands have integer codes."""
    second_is_float = self.second is not None and self.second.is_float
    return not (
      self.weight_bits == FLOAT_BITS
      or self.activation.is_float
      or second_is_float
    )

  @property
  def integers(self) -> np.ndarray:
    """The kernel in whole steps of `integer_step`.

    These are the codes, or twice the codes plus one where `offset` is 1/2:
    int8, but int16 for those of 8 bits.
    """
    assert self.codes is not None
    if not self.offset:
      return self.codes
    doubled = 2 * self.codes.astype(np.int16) + 1
    return doubled if self.weight_bits == 8 else doubled.astype(np.int8)

  @property
  def integer_step(self) -> np.ndarray:
    """The step of `integers`: that of the codes, or half of it; exact."""
    return self.weight_step / np.float32(2 if self.offset else 1)

  def dequantized(self) -> np.ndarray:
    """Give the kernel as the fake-quantized network sees it, float32."""
    assert self.codes is not None
    if self.weight_bits == FLOAT_BITS:
      return self.codes
    codes = self.codes.astype(np.float32) + np.float32(self.offset)
    return self.weight_step * codes

  def largest_accumulator(self, kernel: np.ndarray | None = None) -> int:
    """Bound the absolute value of every sum of products of integers.

    Partial sums in any order keep to it as well: it is the largest activation
    code times the largest sum of absolute integers that make one output.

    Args:
      kernel: whole numbers in place of `integers`.

    Raises:
      ValueError: a layer that is not all integers, or a product of activations,
        whose sums depend on the input's shape.
    """
    if not self.is_integer or self.codes is None:
      raise ValueError(
        f"layer {self.path!r} has no bound; expected a kernel and codes for"
        " both operands."
      )
    summed = tuple(
      axis for axis in range(self.codes.ndim) if axis not in self.outputs
    )
    kernel = self.integers if kernel is None else kernel
    sums = np.abs(kernel.astype(np.int64)).sum(axis=summed)
    largest = max(abs(self.activation.lower), abs(self.activation.upper))
    return int(sums.max(initial=0)) * largest


def input_codes(grid: Grid, x: jax.Array) -> jax.Array:
  """Round an activation to its codes, as the fake-quantized network does.

  Args:
    grid: not float.
    x: any shape.

  Returns:
    The codes, whole numbers in float32 (or a wider type of x).
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  step = jnp.asarray(grid.step, wide.dtype)
  return jnp.round(jnp.clip(wide * (1 / step), grid.lower, grid.upper))


def halves(
  kernel: layer_kinds.Array,
) -> tuple[layer_kinds.Array, layer_kinds.Array]:
  """Split whole numbers into multiples of 16 and the rest, -8 to 8.

  Args:
    kernel: any shape.

  Returns:
    The parts, float32; they add up to the kernel.
  """
  wide = kernel.astype(np.float32)
  high = 16 * (wide / 16).round()
  return high, wide - high


def integer_layers(model: nnx.Module) -> dict[str, IntegerLayer]:
  """Give what the layers of a network multiply, as integers and steps.

  Args:
    model: fixed by a policy, as `asga_jax.with_policy` returns it, so that
      every tensor has one candidate; it is not changed.

  Returns:
    The quantized layers by path, in tree order.

  Raises:
    ValueError: a network without quantized layers, or a layer that still has a
      choice of bits or quantizes its input channel by channel; it is named.
  """
  found = layers.quantized_layers(model)
  if not found:
    raise ValueError(
      f"model ({type(model).__name__}) has no quantized layers; expected what"
      " asga_jax.with_policy returns."
    )
  multiplied = operands(model)
  return {
    path: integer_layer(path, layer, multiplied.get(path))
    for path, layer in found.items()
  }


def operands(model: nnx.Module) -> dict[str, np.ndarray]:
  """Compute the kernels that a network multiplies by, before they are rounded.

  Args:
    model: a searchable network, or one fixed by a policy.

  Returns:
    Path -> kernel, masked, normalised or cast as its layer does it in
    evaluation mode; of the layers that are called.
  """
  found = reading.read(traced(model))
  quantized = layers.quantized_layers(model)
  return {
    path: found.kernel(path)
    for path in found.kernels
    if path in quantized and quantized[path].has_kernel
  }


def traced(model: nnx.Module) -> program.Program:
  """Trace a searchable network, in evaluation mode, on its own example."""
  example, method = remembered.recall(model, "example")
  copy = nnx.clone(model)
  copy.eval()
  return program.trace(copy, example, method=method)


def integer_layer(
  path: str, layer: layers.QuantizedProduct, kernel: np.ndarray | None
) -> IntegerLayer:
  """Give what one quantized layer multiplies.

  Args:
    path: of the layer.
    layer: with one candidate for each tensor.
    kernel: from `operands`; None for a product of two activations.

  Raises:
    ValueError: see `integer_layers`.
  """
  for name, choice in (("weight", layer.weight), ("input", layer.activation)):
    candidates = choice.candidates()
    if len(candidates) > 1:
      raise ValueError(
        f"layer {path!r} is not fixed: its {name} has the candidates"
        f" {candidates}; expected one, as asga_jax.with_policy leaves."
      )
  kind = layer_kinds.ATTRIBUTES[layer.attribute]
  activation = _grid(path, layer.activation)
  if not layer.has_kernel:
    second = _grid(path, layer.weight)
    return IntegerLayer(
      path=path,
      kind=kind,
      weight_bits=second.bits,
      codes=None,
      weight_step=second.step,
      offset=0.0,
      outputs=(),
      activation=activation,
      second=second,
    )
  if kernel is None:
    raise ValueError(
      f"layer {path!r} is not called, so that its kernel is not known;"
      " expected a network that calls all of its quantized layers."
    )
  (bits,) = layer.weight.candidates()
  return IntegerLayer(
    path=path,
    kind=kind,
    weight_bits=bits,
    codes=kernel_codes(layer, kernel),
    weight_step=weight_step(layer, kernel.shape),
    offset=0.0 if bits == FLOAT_BITS else layer.weight.quantizer.offset,
    outputs=layer.outputs,
    activation=activation,
    second=None,
  )


def _step(choice: bit_choice.BitChoice) -> np.ndarray:
  """Give the step of the one candidate, shape () or (channels,)."""
  if choice.candidates() == (FLOAT_BITS,):
    return np.ones((), np.float32)
  step = jnp.maximum(choice.steps()[0], quantizers.SMALLEST_STEP)
  return np.asarray(step, np.float32)


def _grid(path: str, choice: bit_choice.BitChoice) -> Grid:
  (bits,) = choice.candidates()
  step = _step(choice)
  if step.ndim or choice.quantizer.offset:
    raise ValueError(
      f"layer {path!r} quantizes an activation by {choice.quantizer}; expected"
      " one step, and a code for zero."
    )
  if bits == FLOAT_BITS:
    return Grid(bits, step, 0, 0)
  grids = choice.grids()
  return Grid(bits, step, int(grids.lower[0]), int(grids.upper[0]))


def kernel_codes(
  layer: layers.QuantizedProduct, kernel: np.ndarray
) -> np.ndarray:
  """Give the codes of a kernel, or the kernel itself if it is float.

  Args:
    layer: with one candidate for its weights.
    kernel: what it is handed to multiply by.

  Returns:
    int8, or float32 at 32 bits, of the kernel's shape.
  """
  kernel = np.asarray(kernel, np.float32)
  choice = layer.weight
  if choice.candidates() == (FLOAT_BITS,):
    return kernel
  # In NumPy, which needs no compiling: the operations round in the same way.
  matrix = layer_kinds.to_matrix(
    np.asarray(choice.quantizer.transform(jnp.asarray(kernel))), layer.outputs
  )
  scaled = matrix * (1 / _step(choice)) - np.float32(choice.quantizer.offset)
  grids = choice.grids()
  bounds = float(grids.lower[0]), float(grids.upper[0])
  codes = np.rint(np.clip(scaled, *bounds)).astype(np.int8)
  whole = layer_kinds.from_matrix(codes, kernel.shape, layer.outputs)
  return np.ascontiguousarray(whole)


def weight_step(
  layer: layers.QuantizedProduct, shape: tuple[int, ...]
) -> np.ndarray:
  """Give the step of a fixed layer's kernel, to broadcast against it.

  Args:
    layer: with one candidate for its weights.
    shape: of the kernel.

  Returns:
    float32, shape () or as many axes as the kernel, 1 where it is summed over.
  """
  step = _step(layer.weight)
  if not step.ndim:
    return step
  ones = tuple(
    size if axis in layer.outputs else 1 for axis, size in enumerate(shape)
  )
  return layer_kinds.from_matrix(step[None], ones, layer.outputs)
