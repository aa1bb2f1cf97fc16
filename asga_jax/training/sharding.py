"""Placement on devices: state on all of them, batches split over them."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS, MODEL_AXIS = "data", "model"


def data_mesh(
  devices: list[jax.Device] | None = None, *, model: int = 1
) -> Mesh:
  """Make the mesh of the axes `data` and `model`.

  Args:
    devices: None for all of all processes.
    model: how many devices lie along `model`; batches are split over the others
      alone.

  Raises:
    ValueError: devices that cannot be laid out so.
  """
  devices = jax.devices() if devices is None else devices
  if model < 1 or len(devices) % model:
    raise ValueError(
      f"{model} devices along the axis 'model' of {len(devices)}; expected a"
      " divisor of these"
    )
  inside = jax.local_device_count()
  if jax.process_count() > 1 and inside % model:
    raise ValueError(
      f"{model} devices along the axis 'model' of processes with {inside};"
      " expected a divisor of these"
    )
  return jax.make_mesh(
    (len(devices) // model, model),
    (DATA_AXIS, MODEL_AXIS),
    axis_types=(AxisType.Auto,) * 2,
    devices=devices,
  )


def propagated(mesh: Mesh) -> Mesh:
  """Give the same devices with axes along which the compiler shards.

  Raises:
    ValueError: a mesh of explicit axes is set around the call.
  """
  around = jax.sharding.get_abstract_mesh()
  if AxisType.Explicit in around.axis_types:
    raise ValueError(
      f"jax.set_mesh has explicit axes {around.axis_names}; expected none, and"
      " the mesh as an argument."
    )
  return mesh.update(axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def replicated(mesh: Mesh) -> NamedSharding:
  """Give the sharding that holds a whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Give the sharding that splits the first axis over the devices."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
  """Check that a batch, and each micro-batch, splits evenly over the devices.

  Raises:
    ValueError: it does not; it names both.
  """
  parts = mesh.shape[DATA_AXIS]
  if batch_size < 1 or batch_size % (parts * accumulate):
    into = f" into accumulate={accumulate} parts" if accumulate > 1 else ""
    raise ValueError(
      f"batch_size={batch_size} does not split{into} over {parts} devices; "
      f"expected a positive multiple of {parts * accumulate}."
    )


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """Put this process's part of a batch on its devices.

  Args:
    batch: a pytree of numpy arrays, the first axis of each being this
      process's share of the batch. What lies on the mesh already stays.
    mesh: the mesh.

  Returns:
    The same tree of global arrays, sharded over `data`.
  """
  sharding = batch_sharding(mesh)

  def place(leaf):
    if isinstance(leaf, jax.Array):
      lies = leaf.sharding
      if isinstance(lies, NamedSharding) and isinstance(lies.mesh, Mesh):
        lies = NamedSharding(propagated(lies.mesh), lies.spec)
      if lies == sharding:
        return jax.device_put(leaf, sharding)
    _check_leaf(leaf)
    return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

  return jax.tree.map(place, batch)


def checked_batch(batch: Any) -> Any:
  """Give a raw batch that is not placed; raises ValueError for no arrays."""
  jax.tree.map(_check_leaf, batch)
  return batch


def _check_leaf(leaf: Any) -> None:
  array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
  if array.dtype.kind not in "biufcV" or not array.ndim:
    raise ValueError(
      f"a batch holds a {type(leaf).__name__} of {array.dtype} and the shape"
      f" {array.shape}; expected arrays of numbers, the examples along their"
      " first axis."
    )
  _check_fits(array)


def _check_fits(array: Any) -> None:
  """Refuse numbers that JAX would wrap around, or make infinite or all zero."""
  if isinstance(array, jax.Array) or array.dtype.kind not in "iuf":
    return
  dtype = jax.dtypes.canonicalize_dtype(array.dtype)
  if dtype == array.dtype or not array.size:
    return
  limits = (np.finfo if dtype.kind == "f" else np.iinfo)(dtype)
  found = array[np.isfinite(array)] if dtype.kind == "f" else array
  if found.size and not (
    limits.min <= found.min()
    and found.max() <= limits.max
    and (found.astype(dtype).any() or not found.any())
  ):
    raise ValueError(
      f"a batch holds {array.dtype} values from {found.min()} to {found.max()};"
      f" expected what {dtype} holds, or jax_enable_x64."
    )


def place_replicated(tree: Any, mesh: Mesh) -> Any:
  """Put a fresh copy of every leaf on every device, of all processes.

  The copies do not alias what they were made of, so that a step may donate
  them.
  """
  return copied(put(tree, jax.tree.map(lambda _: replicated(mesh), tree)))


def put(tree: Any, shardings: Any) -> Any:
  """Put a tree where a tree of shardings says.

  Args:
    tree: arrays; of several processes each has the same, whole.
    shardings: of each leaf.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)

  def place(leaf, lies):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      return jax.device_put(leaf, lies)
    # Not by `device_put`, which compares all processes' values leaf by leaf.
    whole = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return jax.make_array_from_callback(
      whole.shape, lies, lambda part: whole[part]
    )

  return jax.tree.map(place, tree, shardings)


def summed(tree: Any) -> Any:
  """Sum arrays of the host over all processes, which must all call it."""
  if jax.process_count() == 1:
    return tree
  gathered = multihost_utils.process_allgather(tree)
  return jax.tree.map(
    lambda found, own: found.sum(axis=0, dtype=own.dtype), gathered, tree
  )


@jax.jit
def copied(tree: Any) -> Any:
  """Copy every leaf where it lies, all by one program."""
  return jax.tree.map(jax.numpy.copy, tree)
