"""What a kernel is multiplied by, as rows: a layer's input is unfolded."""

import inspect
import math

import jax
import numpy as np

from asga_jax.network import kinds

# Of the products that are unfolded here, see `kinds.ATTRIBUTES`.
ATTRIBUTES = ("dot_general", "conv_general_dilated")
_CONV = inspect.signature(jax.lax.conv_general_dilated)


def rows(attribute: str, call: kinds.Call, most: int) -> jax.Array:
  """Give some of the rows that a product multiplies its kernel by.

  A row lies as `kinds.to_matrix` lays out a column of the kernel, so that what
  the product gives there is their inner product.

  Args:
    attribute: one of `ATTRIBUTES`.
    call: its operands; what `kinds.output_axes` takes.
    most: how many rows; evenly spaced ones of all that there are, and somewhat
      more where a convolution has no such number of places.

  Returns:
    Shape (groups, rows, summed), of the type of the input.
  """
  if attribute == "dot_general":
    return _of_matrix(call, most)
  return _of_convolution(call, most)


def _evenly(size: int, most: int) -> np.ndarray:
  if most == 1:
    return np.array([size // 2])
  return np.unique(
    np.linspace(0, size - 1, min(size, most)).round().astype(int)
  )


def _of_matrix(call: kinds.Call, most: int) -> jax.Array:
  numbers = call.settings.get("dimension_numbers") or call.args[0]
  (summed, of_kernel), _ = numbers
  x = call.first
  ordered = [summed[i] for i in np.argsort(of_kernel)]
  others = [axis for axis in range(x.ndim) if axis not in summed]
  size = math.prod(x.shape[axis] for axis in ordered)
  found = x.transpose(*others, *ordered).reshape(-1, size)
  return found[_evenly(len(found), most)][None]


def _of_convolution(call: kinds.Call, most: int) -> jax.Array:
  x, kernel = call.first, call.second
  given = _CONV.bind(x, kernel, *call.args, **call.settings).arguments
  rank = x.ndim - 2
  once = (1,) * rank
  groups = given.get("feature_group_count", 1)
  dilation = tuple(given.get("rhs_dilation") or once)
  strides = tuple(given["window_strides"])
  specs = jax.lax.conv_dimension_numbers(
    x.shape, kernel.shape, given.get("dimension_numbers")
  )
  # [N, *spatial, C], and the window as the kernel has it.
  of_input = specs.lhs_spec
  x = x.transpose(of_input[0], *of_input[2:], of_input[1])
  window = [kernel.shape[axis] for axis in specs.rhs_spec[2:]]
  wide = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
  padding = given["padding"]
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(x.shape[1:-1], wide, strides, padding)
  between = [step - 1 for step in given.get("lhs_dilation") or once]
  pads = [(*pair, step) for pair, step in zip(padding, between, strict=True)]
  pads = [(0, 0, 0), *pads, (0, 0, 0)]
  x = jax.lax.pad(x, np.zeros((), x.dtype), pads)
  each = math.ceil((most / len(x)) ** (1 / rank))
  for axis in range(rank):
    size, step = x.shape[1 + 2 * axis], strides[axis]
    places = _evenly((size - wide[axis]) // step + 1, each) * step
    offsets = np.arange(window[axis]) * dilation[axis]
    # An axis becomes two: of places, and of the window.
    x = x.take(np.add.outer(places, offsets), axis=1 + 2 * axis)
  # Of [N, place, window, place, window, ..., groups, C / groups].
  x = x.reshape(*x.shape[:-1], groups, -1)
  parts = {specs.rhs_spec[1]: x.ndim - 1}
  parts |= {axis: 2 + 2 * i for i, axis in enumerate(specs.rhs_spec[2:])}
  ordered = [parts[axis] for axis in sorted(parts)]
  others = [0, *range(1, 1 + 2 * rank, 2)]
  size = math.prod(x.shape[axis] for axis in ordered)
  return x.transpose(x.ndim - 2, *others, *ordered).reshape(groups, -1, size)
