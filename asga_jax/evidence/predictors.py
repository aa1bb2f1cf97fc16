"""What a proxy and a few images of the target tell of a policy beforehand."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asga_jax.deploy import formats
from asga_jax.evidence import bench as bench_lib
from asga_jax.network import kinds, program
from asga_jax.scores import measured


def features(bench: bench_lib.Bench, proxy: str) -> dict[str, Any]:
  """Average what the last layer of the float network reads.

  Args:
    bench: of the network.
    proxy: whose images are shown, as many as are scored.

  Returns:
    'mean' and 'variance' of each feature, and 'seconds'.
  """
  began = time.perf_counter()
  (batch,) = bench.batches(proxy, 1)
  read: list[jax.Array] = []

  def wrap(path: str, attribute: str, product: Any) -> Any:
    del path

    def watched(*args: Any, **settings: Any) -> Any:
      read.append(kinds.read_call(attribute, args, settings).first)
      return product(*args, **settings)

    return watched

  copy = kinds.with_products(bench.reference)
  program.watch(copy, wrap)
  graphdef, state = nnx.split(copy)

  @jax.jit
  def run(state: Any, images: jax.Array) -> jax.Array:
    read.clear()
    nnx.merge(graphdef, state)(images)
    last = read[-1]
    read.clear()
    return last.reshape(-1, last.shape[-1]).astype(jnp.float32)

  found = np.asarray(run(state, batch), np.float64)
  return {
    "mean": found.mean(axis=0).tolist(),
    "variance": found.var(axis=0).tolist(),
    "seconds": time.perf_counter() - began,
  }


def distance(
  first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]
) -> float:
  """Compare the means of two sets of features, of `features`.

  Returns:
    The root of the mean square of their differences, each over the deviation
    of its feature in both sets; features that are constant count nothing.
  """
  means = [np.asarray(x["mean"]) for x in (first, second)]
  variance = np.mean([x["variance"] for x in (first, second)], axis=0)
  moves = variance > 0
  apart = (means[0] - means[1])[moves] ** 2 / variance[moves]
  return float(np.sqrt(apart.mean())) if moves.any() else 0.0


def fit(
  bench: bench_lib.Bench, proxy: str, model: nnx.Module, count: int = 0
) -> dict[str, float]:
  """Compare a network with the float one on images of a proxy.

  Args:
    bench: of the network.
    proxy: whose images are shown.
    model: in evaluation mode.
    count: batches of them, see `Bench.batches`.

  Returns:
    'agreement' of the classes, a share, and the mean 'divergence'.
  """
  batches = bench.batches(proxy, count)
  plain, found = (
    np.concatenate([run(x) for x in batches])
    for run in map(formats.run_in_jax, (bench.reference, model))
  )
  apart = measured.kl_divergence(jnp.asarray(plain), jnp.asarray(found))
  return {
    "agreement": float(np.mean(plain.argmax(1) == found.argmax(1))),
    "divergence": float(np.mean(np.asarray(apart))),
  }


def score_of(
  bits: Mapping[str, Sequence[int]],
  scores: Mapping[str, Sequence[float]],
  choices: Mapping[str, Any],
) -> float:
  """Add up what a policy's candidates score.

  Args:
    bits: [weight bits, activation bits] by layer.
    scores: of each candidate, by group.
    choices: of a search space: by layer its groups and their candidates.

  Returns:
    The sum over groups, each once.
  """
  found: dict[str, float] = {}
  for path, (weight, activation) in bits.items():
    choice = choices[path]
    for group, widths, chosen in (
      (choice.weight_group, choice.weight_bits, weight),
      (choice.activation_group, choice.activation_bits, activation),
    ):
      found[group] = scores[group][list(widths).index(chosen)]
  return sum(found.values())
