"""The score that a search's policy is chosen by, measured once it has ended."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import ml_collections
import numpy as np

from asga_jax import data as data_lib
from asga_jax import policy as policy_lib
from asga_jax import result as result_lib
from asga_jax.data import batches as batches_lib
from asga_jax.runs import build, processes, scores
from asga_jax.scores import choice, fitted, measured

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
  score, images = config.choice.score, config.choice.images
  if score == fitted.SCORE:
    found = _fitted(config, found, dataset, splits, directory)
    return found, result_lib.allocate(found)
  made = scores.measure(
    config,
    found.model,
    score=score,
    images=images,
    dataset=dataset,
    splits=splits,
    file=directory / FILE,
  )
  found = _with(found, made)
  policy = result_lib.allocate(found)
  if not config.choice.evaluations:
    return found, policy
  inputs = scores.training_images(config, dataset, splits, images)

  def improved() -> str:
    better = choice.improve_policy(
      found, policy, [np.asarray(inputs)], evaluations=config.choice.evaluations
    )
    return policy_lib.to_json(better)

  return found, policy_lib.from_json(processes.from_first(improved))


def read(
  config: ml_collections.ConfigDict,
  found: result_lib.SearchResult,
  directory: pathlib.Path,
) -> result_lib.SearchResult:
  """Give a search that is read again the scores that were measured for it."""
  if not config.choice.score or not (directory / FILE).exists():
    return found
  if config.choice.score == fitted.SCORE:
    return fitted.read_scores(found, directory / FILE)
  kept = measured.read_scores(directory / FILE, found.space)
  return _with(found, {config.choice.score: kept})


def _fitted(
  config: ml_collections.ConfigDict,
  found: result_lib.SearchResult,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
  directory: pathlib.Path,
) -> result_lib.SearchResult:
  """Fit scores to the losses of policies on training images."""
  images = min(config.choice.images, len(splits.train))
  count = -(-images // config.eval_batch_size)
  seed = config.search.seed

  def kept() -> str:
    batches = batches_lib.batches_at(
      splits.train,
      range(count),
      batch_size=images // count,
      seed=seed,
    )
    made = fitted.fit_scores(
      found,
      batches,
      policies=config.choice.policies,
      seed=seed,
      batch_statistics=not config.search.freeze_batch_norm,
      prepare=build.make_prepare(config, dataset, train=False),
      cache=directory / FILE,
    )
    scores = made.scores[fitted.SCORE]
    lists = {group: values.tolist() for group, values in scores.items()}
    return json.dumps([lists, dict(made.provenance)])

  return fitted.with_scores(found, *json.loads(processes.from_first(kept)))


def _with(
  found: result_lib.SearchResult,
  made: Scores,
) -> result_lib.SearchResult:
  (name,) = made
  return dataclasses.replace(found, scores={**found.scores, **made}, score=name)
