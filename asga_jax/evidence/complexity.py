"""How flat a network lies at its bits: what a PAC-Bayes bound asks for.

A bound adds to the loss what the weights cost under a posterior around them, a
normal one of deviation s: about |w|^2 / (2 s^2), and what that noise costs the
loss, about s^2 tr(H) / 2. Weight decay stands for the first with s left out.
"""

import collections
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from asga_jax.deploy import formats
from asga_jax.evidence import bench as bench_lib
from asga_jax.evidence import cells, statistics, transfer
from asga_jax.evidence import grid as grid_lib
from asga_jax.network import kinds
from asga_jax.quantization import layers, quantizers
from asga_jax.scores import measured

# Of each, the larger the flatter.
TERMS = ("l2", "trace", "tolerance")
# What noise may add to the divergence, in nats.
_ADDED = 0.1
_LARGEST, _HALVINGS, _SIGNS = 0.5, 7, 2


def measure(
  bench: bench_lib.Bench, proxy: str, model: nnx.Module, seed: int = 0
) -> dict[str, float]:
  """Measure the terms of a network at its bits, on the images that score.

  Noise is relative: of each kernel, as it is multiplied, to the root of its
  mean square. It is not quantized again.

  Args:
    bench: of the network.
    proxy: whose images are shown.
    model: fixed at its bits, in evaluation mode.
    seed: of the noise.

  Returns:
    'l2': minus the sum of squares of all kernels. 'trace': minus the trace of
    the Hessian of the divergence from the float network, in that noise.
    'tolerance': the deviation of noise that adds 0.1 nats to the divergence, at
    most 0.5. And 'seconds'.

  Source: Dziugaite and Roy, "Computing nonvacuous generalization bounds" (UAI
  2017); Hutchinson (1989); Jiang et al., "Fantastic generalization measures and
  where to find them" (ICLR 2020), their sharpness of magnitude-aware noise.
  """
  began = time.perf_counter()
  (images,) = bench.batches(proxy, 1)
  plain = jnp.asarray(formats.run_in_jax(bench.reference)(images))
  model = released(model)
  parts: Any = nnx.split(model, _is_kernel(model), ...)
  graphdef, kernels, rest = parts
  scale = jax.tree.map(lambda w: jnp.sqrt(jnp.mean(w**2)), kernels)

  @jax.jit
  def divergence(kernels: Any, rest: Any, noise: Any, size: Any) -> jax.Array:
    moved = jax.tree.map(
      lambda w, s, e: w + size * s * e, kernels, scale, noise
    )
    found = nnx.merge(graphdef, moved, rest, copy=True)(images)
    return jnp.mean(measured.kl_divergence(plain, found))

  @jax.jit
  def curvature(kernels: Any, rest: Any, signs: Any) -> jax.Array:
    zeros = jax.tree.map(jnp.zeros_like, kernels)
    # Not forward over reverse, which functions with a backward pass of their
    # own refuse.
    slope = jax.grad(lambda e: divergence(kernels, rest, e, 1.0))
    turned = jax.grad(lambda e: optax.tree.vdot(slope(e), signs))(zeros)
    return optax.tree.vdot(signs, turned)

  keys = jax.random.split(jax.random.key(seed), 1 + _SIGNS)
  noise = optax.tree.random_like(keys[0], kernels)
  added = functools.partial(_added, divergence, kernels, rest, noise)
  traces = [
    curvature(
      kernels,
      rest,
      optax.tree.random_like(key, kernels, sampler=jax.random.rademacher),
    )
    for key in keys[1:]
  ]
  return {
    "l2": -float(optax.tree.norm(kernels, squared=True)),
    "trace": -float(np.mean(traces)),
    "tolerance": _tolerance(added),
    "seconds": time.perf_counter() - began,
  }


def _added(
  divergence: Any, kernels: Any, rest: Any, noise: Any, size: float
) -> float:
  """Give what noise adds to the divergence: of both signs, on average."""
  base, *moved = (
    float(divergence(kernels, rest, noise, x)) for x in (0.0, size, -size)
  )
  return float(np.mean(moved)) - base


def _tolerance(added: Any) -> float:
  low, high = 0.0, _LARGEST
  if added(high) <= _ADDED:
    return high
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    low, high = (middle, high) if added(middle) <= _ADDED else (low, middle)
  return (low + high) / 2


def released(model: nnx.Module) -> nnx.Module:
  """Copy a fixed network with kernels that are float, at quantized values."""
  model = nnx.clone(model)
  for layer in layers.kernel_layers(model).values():
    kernel, product = layer
    rounded = product.weight(layer.kernel_matrix())
    kernel[...] = kinds.from_matrix(
      rounded, kernel[...].shape, product.outputs
    ).astype(kernel[...].dtype)
    grid = product.weight.grid
    grid[...] = grid[...].at[0].set(quantizers.FLOAT_BITS)
  return model


def _is_kernel(model: nnx.Module) -> Any:
  found = {id(x.kernel) for x in layers.kernel_layers(model).values()}
  return lambda path, variable: id(variable) in found


def read(
  grid: grid_lib.Grid,
  store: cells.Store,
  rows: Sequence[Any],
  part: str,
) -> list[dict[str, Any]]:
  """Set each policy's terms of complexity beside what it gives.

  Args:
    grid: which.
    store: its cells.
    rows: of `report.read_rows`.
    part: of the targets, whose rows are taken.

  Returns:
    What the CSV says of each policy that was measured, with `TERMS`.
  """
  found = []
  for said, *_ in rows:
    row = transfer.row_of(said)
    policy = store.get(grid.policy_spec(row))
    assert policy is not None
    terms = store.get(grid.complexity_spec(row, policy["bits"]))
    if terms is not None and said["target"] == part:
      found.append({**said, **terms})
  return found


def correlate(
  rows: Sequence[Mapping[str, Any]], real: str = "agreement"
) -> list[dict[str, Any]]:
  """Compute how each term ranks the policies of a network and a budget.

  Args:
    rows: with 'network', 'budget', `real` and `TERMS`.
    real: what policies give on the target.

  Returns:
    A row a network, budget and term: Spearman's 'correlation' over 'policies'.
  """
  grouped: dict[Any, list[Any]] = collections.defaultdict(list)
  for row in rows:
    grouped[row["network"], row["budget"]].append(row)
  return [
    {
      "network": network,
      "budget": budget,
      "term": term,
      "policies": len(given),
      "correlation": statistics.rank_correlation(
        *(np.array([x[key] for x in given], float) for key in (term, real))
      ),
    }
    for (network, budget), given in grouped.items()
    for term in TERMS
  ]
