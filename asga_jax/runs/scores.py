"""Scores of a run's network, measured on its training images."""

import json
import pathlib

import jax
import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from asga_jax import data as data_lib
from asga_jax import evaluate
from asga_jax.runs import build, processes
from asga_jax.scores import measured

# Score -> group -> a number a candidate.
Scores = dict[str, dict[str, np.ndarray]]


def training_images(
  config: ml_collections.ConfigDict,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
  count: int,
) -> jax.Array:
  """Give training images as the network takes them, or all that there are."""
  return next(
    evaluate.norm_inputs(
      splits.train,
      build.make_prepare(config, dataset, train=False),
      batch_size=min(count, len(splits.train)),
      batches=1,
      seed=config.search.seed,
    )
  )


def measure(
  config: ml_collections.ConfigDict,
  model: nnx.Module,
  *,
  score: str,
  images: int,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
  file: pathlib.Path,
) -> Scores:
  """Measure every tensor of a searchable network.

  Args:
    config: of the search.
    model: what `measured.measure_scores` takes.
    score: one of those that it keeps, or that take no long time.
    images: how many training images are measured on.
    dataset: the proxy.
    splits: its parts.
    file: what the scores are kept in, from which a killed run goes on.

  Returns:
    The scores; in all processes those of the first.
  """
  inputs = np.asarray(training_images(config, dataset, splits, images))
  logging.info("measuring every tensor on %d images", len(inputs))

  def measured_scores() -> str:
    scored = measured.measure_scores(
      model,
      [inputs],
      budget=config.budget,
      score=score,
      costs=build.make_costs(config),
      cache=file,
    )
    return json.dumps(
      {
        name: {group: values.tolist() for group, values in groups.items()}
        for name, groups in scored.scores.items()
      }
    )

  # By one process: which images were measured is kept in a file of its own.
  told = json.loads(processes.from_first(measured_scores))
  return {
    name: {group: np.asarray(values) for group, values in groups.items()}
    for name, groups in told.items()
  }
