"""JAX's usual rules of promotion within, whatever a caller asks of its own."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def usual() -> Iterator[None]:
  """Let dtypes and ranks meet as JAX does by default; also a decorator.

  `jax.numpy_dtype_promotion("strict")` and `jax.numpy_rank_promotion("raise")`
  are for what a user writes: they would refuse what is written here.
  """
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    yield
