"""What a network at a policy's bits gets before it is evaluated."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from asga_jax import data as data_lib
from asga_jax import evaluate, finetune
from asga_jax.data import batches
from asga_jax.evidence import bench as bench_lib
from asga_jax.evidence import images as images_lib
from asga_jax.evidence import networks as networks_lib
from asga_jax.quantization import batch_norm, fixing
from asga_jax.scores import post_training

# Kind -> what it reads of a configuration.
KINDS: Mapping[str, tuple[str, ...]] = {
  # Kernels rounded, biases and batch norm corrected, on a proxy's images.
  "rounded": ("proxy",),
  # Trained with labels of a data set, from ranges of a proxy's images.
  "trained": (
    "proxy",
    "source",
    "steps",
    "batch_size",
    "learning_rate",
    "ema_decay",
  ),
}
_NORM_BATCHES, _NORM_BATCH = 8, 250


def apply(
  bench: bench_lib.Bench,
  treatment: Mapping[str, Any],
  bits: Mapping[str, Any],
  seed: int,
) -> nnx.Module:
  """Give a network its bits, and the treatment that all policies get.

  Args:
    bench: of the network.
    treatment: 'kind', and what `KINDS` says of it.
    bits: [weight bits, activation bits] by layer.
    seed: of a training.

  Returns:
    The network, in evaluation mode.
  """
  proxy = treatment["proxy"]
  pairs = {path: (pair[0], pair[1]) for path, pair in bits.items()}
  if treatment["kind"] == "rounded":
    return post_training.apply_bits(
      bench.searchable(proxy),
      pairs,
      bench.batches(proxy),
      reference=bench.reference,
    )
  fixed = fixing.fix_bits(bench.searchable(proxy), pairs)
  return _trained(bench, treatment, fixed, seed)


def settings_of(
  treatment: Mapping[str, Any], *, seed: int
) -> finetune.FinetuneSettings:
  """Make the settings of a training; ValueError for a bad value."""
  if treatment["batch_size"] < 1:
    raise ValueError(
      f"config.treatment.batch_size is {treatment['batch_size']}; expected at"
      " least 1"
    )
  return finetune.FinetuneSettings(
    steps=treatment["steps"],
    learning_rate=treatment["learning_rate"],
    ema_decay=treatment["ema_decay"],
    seed=seed,
  )


def _trained(
  bench: bench_lib.Bench,
  treatment: Mapping[str, Any],
  fixed: nnx.Module,
  seed: int,
) -> nnx.Module:
  dataset = images_lib.read_training(
    treatment["source"], bench.network, bench.root
  )
  split = data_lib.Split(dataset.train_images, dataset.train_labels)
  settings = settings_of(treatment, seed=seed)

  def shown() -> Iterator[dict[str, np.ndarray]]:
    for step in range(settings.steps):
      yield batches.batch_at(
        split, step, batch_size=treatment["batch_size"], seed=seed
      )

  trained = finetune.train_policy(
    fixed,
    shown(),
    settings=settings,
    prepare=networks_lib.step_input(bench.network, dataset.flip),
  )
  inputs = evaluate.norm_inputs(
    split,
    networks_lib.step_input(bench.network),
    batch_size=_NORM_BATCH,
    batches=_NORM_BATCHES,
    seed=seed,
  )
  batch_norm.reestimate_batch_norm(trained, inputs)
  trained.eval()
  return trained
