"""Which platform a program is traced for.

Mostly that is the one at hand. A program for other devices, such as a TPU pod
that is not there, is to hold none of the forms that are for a CPU alone.
"""

import contextlib
from collections.abc import Iterator

import jax

# JAX traces anew what it has traced for another platform.
_CONTEXT = jax.make_user_context(None)


@contextlib.contextmanager
def aimed_at(platform: str) -> Iterator[None]:
  """Trace for a platform, as `jax.Device.platform` names it."""
  with _CONTEXT(platform):
    yield


def platform() -> str:
  """Give the platform: 'cpu', 'gpu', 'tpu' or another one of JAX's."""
  found: str | None = _CONTEXT.value
  return jax.default_backend() if found is None else found
