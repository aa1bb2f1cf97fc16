"""What a mixture costs beside copying its tensor, by the number of candidates.

The forward pass has to read one tensor and to write one, as a copy does; the
backward pass has to read two and to write one, as a product does. Prints
multiples of these. On a GPU that `mixture_kernel` serves, the backward pass is
timed with it and without it.

python benchmarks/mixture.py --size=256x56x56x64
"""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import terminal
from absl import app, flags

from asga_jax.quantization import mixture as formula
from asga_jax.quantization import quantizers
from asga_jax.xla import lowering, mixture, mixture_kernel

# Twelve are more than users may have: how time grows.
CANDIDATES = (
  (4,),
  (2, 4),
  (2, 3, 4, 5, 6, 8),
  (2, 3, 4, 5, 6, 7, 8, 32),
  (*range(2, 13), 32),
)

_SIZE = flags.DEFINE_string("size", "64x32x32x64", "Shape of the tensor.")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Timed calls of each program.")


def seconds(
  function: Callable[..., Any], *args: Any
) -> tuple[float, float, float]:
  """Time a compiled function: median and quartiles."""
  lowered = jax.jit(function).lower(*args)
  compiled = lowered.compile(compiler_options=lowering.compiler_options())
  jax.block_until_ready(compiled(*args))
  spent = []
  for _ in range(_ROUNDS.value):
    started = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    spent.append(time.perf_counter() - started)
  low, middle, high = statistics.quantiles(spent, n=4)
  return middle, low, high


def main(_: list[str]) -> None:
  """Time all, and print a table."""
  shape = tuple(int(part) for part in _SIZE.value.split("x"))
  x, g = (
    jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0))
  )
  copy = seconds(lambda x: 1.5 * x, x)[0]
  product = seconds(lambda x, g: x * g, x, g)[0]
  print(
    f"{_SIZE.value} float32 on {platform.machine()}, "
    f"{jax.devices()[0].device_kind}, jax {jax.__version__}: a copy takes "
    f"{1e3 * copy:.3f} ms, a product {1e3 * product:.3f} ms"
  )
  settings = mixture.Settings(0.0, "full", quantizers.SMALLEST_STEP)
  rows = []
  for bits in CANDIDATES:
    grids = formula.make_grids(jnp.asarray(bits), jnp.asarray(True), True)
    steps = 1.5 / jnp.maximum(grids.upper, 1)
    weights = jnp.full(len(bits), 1 / len(bits))

    def mix(x, steps, weights, grids=grids):
      return mixture.mix(x, steps, weights, grids, settings)

    found = [(seconds(mix, x, steps, weights), copy)]
    for kernel in (False, True):
      if kernel and not mixture_kernel.runs(x, steps):
        continue

      # A function of its own each time: jax keeps what it traced of another.
      def pull_back(x, steps, weights, g, mix=mix):
        return jax.vjp(mix, x, steps, weights)[1](g)

      with mock.patch.object(mixture_kernel, "runs", return_value=kernel):
        spent = seconds(pull_back, x, steps, weights, g)
      found.append((spent, product))
    forward, backward, *kernels = (
      f"{middle / unit:.2f} ({low / unit:.2f}-{high / unit:.2f})"
      for (middle, low, high), unit in found
    )
    rows.append((len(bits), forward, backward, *(kernels or [""])))
  headers = ("candidates", "forward", "backward", "kernel")
  print(terminal.table(rows, headers))


if __name__ == "__main__":
  app.run(main)
