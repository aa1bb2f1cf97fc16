"""Operations that are written with simpler ones of JAX before they are read."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from asga_jax.deploy.onnx import windows as onnx_windows


def _cumulative(combine: Callable[[Any, Any], Any]) -> Callable[..., Any]:
  def write(params: Any) -> Callable[..., Any]:
    return lambda x: lax.associative_scan(
      combine, x, reverse=params["reverse"], axis=params["axis"]
    )

  return write


def _atan2(params: Any) -> Callable[..., Any]:
  del params

  def write(y, x):
    half = jnp.where(y < 0, -np.pi, np.pi).astype(x.dtype)
    found = lax.atan(y / x) + jnp.where(x < 0, half, 0)
    return jnp.where((x == 0) & (y == 0), jnp.zeros_like(found), found)

  return write


def _round(params: Any) -> Callable[..., Any]:
  if params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN:
    return NotImplemented
  # A half added to what lies just below one would round it up.
  return lambda x: jnp.where(
    jnp.abs(x - jnp.trunc(x)) >= 0.5, jnp.trunc(x) + jnp.sign(x), jnp.trunc(x)
  )


def _any_or_all(reduce: Callable[..., Any]) -> Callable[..., Any]:
  def write(params: Any) -> Callable[..., Any]:
    def of(x):
      found = reduce(x.astype(np.int32), params["axes"])
      return found.astype(x.dtype)

    return of

  return write


def _select(params: Any) -> Callable[..., Any]:
  del params

  def write(which, *cases):
    if len(cases) == 1:
      return cases[0]
    found = cases[-1]
    for number in reversed(range(len(cases) - 1)):
      one = (which == number) if which.dtype != bool else ~which
      found = jnp.where(
        jnp.broadcast_to(one, found.shape), cases[number], found
      )
    return found

  return write


def _update_slice(params: Any) -> Callable[..., Any]:
  """Write an update as a choice between two tensors of the same shape."""
  del params

  def write(x, update, *starts):
    inside = None
    for axis, start in enumerate(starts):
      whole, size = x.shape[axis], update.shape[axis]
      if whole == size:
        continue
      start = jnp.clip(start, 0, whole - size)
      places = np.arange(whole, dtype=start.dtype) - start
      shape = [1] * x.ndim
      shape[axis] = whole
      here = ((places >= 0) & (places < size)).reshape(shape)
      inside = here if inside is None else inside & here
      update = jnp.take(
        update, jnp.clip(places, 0, size - 1), axis, mode="clip"
      )
    if inside is None:
      return update
    return jnp.where(jnp.broadcast_to(inside, x.shape), update, x)

  return write


def _before(x: Any, y: Any) -> Any:
  """Say which comes first where NaN is last and -0 before 0."""
  beside = (y != y) & (x == x)
  return (x < y) | beside | ((x == y) & (1 / x < 1 / y))


def _unstack(params: Any) -> Callable[..., Any]:
  axis = params["axis"]
  return lambda x: [
    lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])
  ]


def _iota(params: Any) -> Callable[..., Any]:
  shape, axis, dtype = (params[k] for k in ("shape", "dimension", "dtype"))
  if not isinstance(shape[axis], int):
    return NotImplemented

  def write(*_):
    places = np.arange(shape[axis], dtype=dtype)
    return lax.broadcast_in_dim(places, shape, (axis,))

  return write


# Operation -> of its parameters, a function of its operands; or
# `NotImplemented`, where it is built as it is.
_WRITTEN: dict[str, Callable[[Any], Any]] = {
  "atan2": _atan2,
  "cbrt": lambda _: lambda x: jnp.sign(x) * jnp.abs(x) ** (1 / 3),
  "cumlogsumexp": _cumulative(jnp.logaddexp),
  "cummax": _cumulative(lax.max),
  "cummin": _cumulative(lax.min),
  "cumprod": _cumulative(lax.mul),
  "dynamic_update_slice": _update_slice,
  "iota": _iota,
  "is_finite": lambda _: lambda x: jnp.abs(x) < np.inf,
  "le_to": lambda _: lambda x, y: ~_before(y, x),
  "lt_to": lambda _: _before,
  "reduce_and": _any_or_all(lax.reduce_min),
  "reduce_or": _any_or_all(lax.reduce_max),
  "round": _round,
  "unstack": _unstack,
}


def written(equation: Any) -> Callable[..., Any] | None:
  """Give an operation as a function of simpler ones, None if it needs none."""
  name, params = equation.primitive.name, equation.params
  avals = [variable.aval for variable in equation.invars]
  if name.startswith("reduce_window"):
    if onnx_windows.is_pool(name, params, avals[0].dtype):
      return None
    return onnx_windows.by_shifts(name, params)
  if name == "select_n":
    if len(avals) == 3 and avals[0].dtype == bool:
      return None
    return _select(params)
  if name not in _WRITTEN:
    return None
  found = _WRITTEN[name](params)
  return None if found is NotImplemented else found
