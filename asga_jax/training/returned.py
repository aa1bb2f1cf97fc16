"""Checks of what a network and a loss function give, as a step is traced."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asga_jax import checks


def check_logits(logits: Any, labels: Any) -> Any:
  """Check what a network gives for images, and their labels.

  Logits of every pixel or token are (batch, ..., classes), and their labels
  (batch, ...).

  Raises:
    ValueError: no floats of such a shape, or no label for each row.
  """
  if not isinstance(labels, np.ndarray | jax.Array):
    raise ValueError(
      f"labels are a {type(labels).__name__}; expected an array of whole"
      " numbers, one a row of logits."
    )
  dtype: Any = getattr(logits, "dtype", None)
  shape: tuple[int, ...] = () if dtype is None else logits.shape
  if (
    dtype is None
    or not jnp.issubdtype(dtype, jnp.floating)
    or len(shape) < 2
    or (len(shape) > 2 and len(shape) != labels.ndim + 1)
    or not shape[-1]
  ):
    raise ValueError(
      f"the network gives a {type(logits).__name__} ({dtype} of {shape});"
      " expected logits, floats of shape (batch, classes)."
    )
  if labels.shape != shape[:-1] or not jnp.issubdtype(
    labels.dtype, jnp.integer
  ):
    raise ValueError(
      f"labels are {labels.dtype} of {labels.shape}; expected whole numbers of"
      f" {shape[:-1]}, one a row of logits."
    )
  return logits


def known(labels: jax.Array, losses: jax.Array, classes: int) -> jax.Array:
  """Give NaN for the loss of a label that is not in [0, classes)."""
  return jnp.where((labels >= 0) & (labels < classes), losses, jnp.nan)


def checked(result: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Check what a loss function returned; raises ValueError."""
  pair = isinstance(result, tuple) and len(result) == 2
  if not pair or not isinstance(result[1], Mapping):
    raise ValueError(
      f"loss_fn returned {type(result).__name__}; expected a pair (loss, "
      "figures) of the mean loss and a dict, perhaps empty: return loss, {}"
    )
  for name, value in {"loss": result[0], **result[1]}.items():
    dtype = getattr(value, "dtype", type(value))
    if not jnp.issubdtype(
      dtype, jnp.floating if name == "loss" else jnp.number
    ):
      raise ValueError(
        f"{name!r} of loss_fn is a {dtype}; expected a real number."
      )
    if jnp.shape(value) != ():
      raise ValueError(
        f"{name!r} of loss_fn has the shape {jnp.shape(value)}; expected one "
        "number, such as a mean over the batch."
      )
  return result


def not_run(name: str, error: Exception, batch: Any) -> ValueError:
  """Say in a sentence on which batch a function fails, and why."""
  shapes = [
    f"{jax.tree_util.keystr(keys) or 'it'} {leaf.dtype} of {leaf.shape}"
    for keys, leaf in jax.tree.leaves_with_path(batch)
    if hasattr(leaf, "dtype")
  ]
  reason = checks.reason(error)
  return ValueError(
    f"{name} does not run on a batch ({', '.join(shapes)}): {reason}"
  )
