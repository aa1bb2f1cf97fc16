"""Reductions over windows: pools of ONNX, or shifted copies of a tensor."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax

from asga_jax.deploy.onnx.values import Builder, ExportError, Rule, Tensor

# More shifted copies of a tensor than this are no sensible file.
_MOST_COPIES = 256
_SETTINGS = (
  "window_dimensions",
  "window_strides",
  "padding",
  "base_dilation",
  "window_dilation",
)
# Of an operation on two: itself, and what changes nothing.
_COMBINES: dict[str, tuple[Callable[[Any, Any], Any], float]] = {
  "add": (lax.add, 0),
  "max": (lax.max, -np.inf),
  "min": (lax.min, np.inf),
  "mul": (lax.mul, 1),
}


def _outer_axes(params: Any) -> list[int] | None:
  """Give two axes that a pool may leave alone, or None if it is no pool."""
  window = params["window_dimensions"]
  if any(d != 1 for d in params["base_dilation"]):
    return None
  trivial = [
    axis
    for axis, (size, stride, pads) in enumerate(
      zip(window, params["window_strides"], params["padding"], strict=True)
    )
    if (size, stride, *pads) == (1, 1, 0, 0)
  ]
  if len(trivial) < 2 or len(window) < 3:
    return None
  return [trivial[0], trivial[-1]]


def is_pool(name: str, params: Any, dtype: Any) -> bool:
  """Say whether a reduction over windows is one of ONNX's pools."""
  return (
    name in ("reduce_window_max", "reduce_window_sum")
    and dtype == np.float32
    and _outer_axes(params) is not None
  )


def _padded(builder: Builder, name: str, pads: Any, operation: str) -> str:
  """Pad all axes after the first two by what a pool passes over."""
  half = len(pads) // 2
  value = 0.0 if operation == "AveragePool" else -np.inf
  return builder.graph.add(
    "Pad",
    name,
    builder.graph.constant([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64),
    builder.graph.constant(value, np.float32),
  )


def _pool(operation: str) -> Rule:
  """Build a maximum or a sum over windows; ONNX pools after two axes."""

  def rule(builder, values, params, aval):
    window = params["window_dimensions"]
    outer = _outer_axes(params)
    assert outer is not None
    places = [axis for axis in range(len(window)) if axis not in outer]
    axes = (*outer, *places)
    pads = [params["padding"][axis] for axis in places]
    settings: dict[str, Any] = {
      "kernel_shape": [window[axis] for axis in places],
      "strides": [params["window_strides"][axis] for axis in places],
      "dilations": [params["window_dilation"][axis] for axis in places],
      "pads": [int(p[side]) for side in (0, 1) for p in pads],
    }
    name = builder.ordered(values[0], axes)
    if any(
      pad >= size
      for pair, size in zip(pads, settings["kernel_shape"], strict=True)
      for pad in pair
    ):
      # A runtime refuses to pool over padding alone.
      name = _padded(builder, name, settings.pop("pads"), operation)
    if operation == "AveragePool":
      settings["count_include_pad"] = 1
    name = builder.graph.add(operation, name, **settings)
    if operation == "AveragePool":
      count = builder.graph.constant(np.prod(window), aval.dtype)
      name = builder.graph.add("Mul", name, count)
    return Tensor(name, aval.shape, aval.dtype, axes)

  return rule


def by_shifts(name: str, params: Any) -> Callable[..., Any]:
  """Write a reduction over windows as one of shifted copies, axis by axis.

  Args:
    name: of the operation, `reduce_window` or one of its special cases.
    params: of the operation.

  Returns:
    A function of the operation's operands.
  """
  window, strides, padding, base, dilation = (params[k] for k in _SETTINGS)
  if sum(window) - len(window) > _MOST_COPIES:
    raise ExportError(f"its window is {tuple(window)}")

  combine, neutral = _combination(name, params)

  def reduce(x: Any, *start: Any) -> Any:
    first = neutral
    if np.isinf(neutral) and np.issubdtype(x.dtype, np.integer):
      limits = np.iinfo(x.dtype)
      first = limits.min if neutral < 0 else limits.max
    config = [
      (low, high, step - 1)
      for (low, high), step in zip(padding, base, strict=True)
    ]
    x = lax.pad(x, np.asarray(first, x.dtype), config)
    for axis, (size, stride, spread) in enumerate(
      zip(window, strides, dilation, strict=True)
    ):
      if size == stride == 1:
        continue
      whole = x.shape[axis]
      places = (whole - (size - 1) * spread - 1) // stride + 1
      parts = [
        lax.slice_in_dim(
          x,
          place * spread,
          place * spread + (places - 1) * stride + 1,
          stride,
          axis,
        )
        for place in range(size)
      ]
      x = parts[0]
      for part in parts[1:]:
        x = combine(x, part)
    return combine(lax.broadcast(start[0], x.shape), x) if start else x

  return reduce


def _combination(name: str, params: Any) -> tuple[Callable[..., Any], float]:
  kind = name.removeprefix("reduce_window_").replace("sum", "add")
  if name == "reduce_window":
    equations = params["jaxpr"].eqns
    kind = equations[0].primitive.name if len(equations) == 1 else ""
  if kind not in _COMBINES:
    raise ExportError(
      f"it combines by a function of its own; expected one of {[*_COMBINES]}"
    )
  return _COMBINES[kind]


RULES: dict[str, Rule] = {
  "reduce_window_max": _pool("MaxPool"),
  "reduce_window_sum": _pool("AveragePool"),
}
