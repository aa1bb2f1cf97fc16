"""The score that a search's policy is chosen by, measured once it has ended."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import ml_collections
import numpy as np
from absl import logging

from asga_jax import data as data_lib
from asga_jax import evaluate
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.runs import build, processes
from asga_jax.scores import choice, measured

FILE = "scores.json"
Scores = Mapping[str, Mapping[str, np.ndarray]]


def measure(
  config: ml_collections.ConfigDict,
  found: result_lib.SearchResult,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
  directory: pathlib.Path,
) -> tuple[result_lib.SearchResult, policy_lib.Policy]:
  """Choose the policy of a search, by scores of the searched network.

  Args:
    config: of the search.
    found: of the search.
    dataset: the proxy.
    splits: its parts; training images are measured on.
    directory: the work directory, which keeps the scores.

  Returns:
    The result with these scores beside those that were learned, and the policy;
    the same result where the configuration asks for none.
  """
  if not config.choice.score:
    return found, result_lib.allocate(found)
  inputs = next(
    evaluate.norm_inputs(
      splits.train,
      build.make_prepare(config, dataset, train=False),
      batch_size=min(config.choice.images, len(splits.train)),
      batches=1,
      seed=config.search.seed,
    )
  )
  batches = [np.asarray(inputs)]
  logging.info(
    "measuring every tensor of the searched network on %d images", len(inputs)
  )

  def measured_scores() -> str:
    scored = measured.measure_scores(
      found.model,
      batches,
      budget=found.budget,
      score=config.choice.score,
      costs=found.costs,
      cache=directory / FILE,
    )
    return json.dumps(
      {
        name: {group: values.tolist() for group, values in groups.items()}
        for name, groups in scored.scores.items()
      }
    )

  def improved() -> str:
    better = choice.improve_policy(
      found, policy, batches, evaluations=config.choice.evaluations
    )
    return policy_lib.to_json(better)

  # By one process: which images were measured is kept in a file of its own.
  told = json.loads(processes.from_first(measured_scores))
  found = _with(
    found,
    {
      name: {group: np.asarray(values) for group, values in groups.items()}
      for name, groups in told.items()
    },
  )
  policy = result_lib.allocate(found)
  if config.choice.evaluations:
    policy = policy_lib.from_json(processes.from_first(improved))
  return found, policy


def read(
  config: ml_collections.ConfigDict,
  found: result_lib.SearchResult,
  directory: pathlib.Path,
) -> result_lib.SearchResult:
  """Give a search that is read again the scores that were measured for it."""
  if not config.choice.score or not (directory / FILE).exists():
    return found
  scores = measured.read_scores(directory / FILE, found.space)
  return _with(found, {config.choice.score: scores})


def _with(
  found: result_lib.SearchResult,
  scores: Scores,
) -> result_lib.SearchResult:
  (name,) = scores
  return dataclasses.replace(
    found, scores={**found.scores, **scores}, score=name
  )
