"""Checks of what functions for users are called with."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen, nnx
from jax.sharding import AxisType, Mesh, NamedSharding

from asga_jax import checks


def check_module(model: Any) -> None:
  """Check that a network is one of Flax NNX, on devices as it is used here.

  Raises:
    ValueError: it is not; one of Linen is told how it comes over. Or axes of a
      mesh are explicit.
  """
  if not isinstance(model, nnx.Module):
    raise ValueError(other_than(model, "a Flax nnx.Module"))
  _check_axes(model)


def check_method(model: Any, method: Any) -> None:
  """Check that a network has a method of this name; raises ValueError."""
  if not isinstance(method, str) or not callable(getattr(model, method, None)):
    raise checks.refusal(
      "method", method, f"the name of a method of {type(model).__name__}"
    )


def other_than(model: Any, expected: str) -> str:
  """Write that this is no network, and how one of Linen comes over."""
  bridge = ""
  if isinstance(model, linen.Module):
    bridge = (
      "; a Linen module comes over by nnx.bridge.ToNNX(model, rngs), with its"
      " parameters from nnx.bridge.lazy_init"
    )
  return f"model is a {type(model).__name__}; expected {expected}{bridge}."


def on_usual_axes(leaf: Any) -> Any:
  """Give an array where it lies, without its sharding as a part of its type."""
  mesh = _explicit_mesh(leaf)
  if mesh is None:
    return leaf
  mesh = mesh.update(axis_types=(AxisType.Auto,) * len(mesh.axis_names))
  return jax.device_put(leaf, NamedSharding(mesh, leaf.sharding.spec))


def _explicit_mesh(leaf: Any) -> Mesh | None:
  """Give the mesh that an array lies on, if it has explicit axes."""
  if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
    return None
  mesh = getattr(leaf.sharding, "mesh", None)
  explicit = isinstance(mesh, Mesh) and AxisType.Explicit in mesh.axis_types
  return mesh if explicit else None


def _check_axes(model: nnx.Module) -> None:
  """Refuse axes whose shardings would be part of every type."""
  advice = (
    "; expected axis_types=(jax.sharding.AxisType.Auto,) * N in jax.make_mesh,"
    " with which the compiler propagates shardings"
  )
  around = jax.sharding.get_abstract_mesh()
  if AxisType.Explicit in around.axis_types:
    raise ValueError(
      f"jax.set_mesh has explicit axes {around.axis_names}{advice}."
    )
  for path, leaf in nnx.to_flat_state(nnx.state(model)):
    for value in jax.tree.leaves(leaf):
      mesh = _explicit_mesh(value)
      if mesh is not None:
        name = "/".join(map(str, path))
        raise ValueError(
          f"{name} lies on explicit axes {mesh.axis_names}{advice}."
        )


def check_shape(shape: Any) -> tuple[int, ...]:
  """Check the shape of one input, without the batch.

  Raises:
    ValueError: it is no tuple of sizes above 0.
  """
  listed = isinstance(shape, Sequence) and not isinstance(shape, str | bytes)
  if not listed or not all(
    isinstance(size, int | np.integer) and size > 0 for size in shape
  ):
    raise ValueError(
      f"the input shape is {checks.short(shape)}; expected the sizes of one"
      " input without the batch, such as (224, 224, 3), or an example: an"
      " array, a tuple of arrays in order, or a dict of them by name."
    )
  return tuple(int(size) for size in shape)


def lost_by(values: np.ndarray, dtype: Any) -> str:
  """Say what a cast would lose beyond rounding; '' where nothing.

  Args:
    values: any numbers.
    dtype: of JAX, that they are to have.
  """
  values = np.asarray(values)
  if values.dtype == dtype or not values.size:
    return ""
  with np.errstate(all="ignore"):
    cast = values.astype(dtype)
    if values.dtype.kind in "iu" and np.dtype(dtype).kind in "iu":
      same = bool(np.array_equal(cast, values))
    else:
      finite = np.isfinite(cast.astype(np.float64))
      same = bool((finite | ~np.isfinite(values)).all())
      same &= bool(cast.any()) or not values.any()
  if same:
    return ""
  largest = max(abs(values.min()), abs(values.max()))
  return f"holds {values.dtype} values up to {largest:.3g} that {dtype} cannot"
