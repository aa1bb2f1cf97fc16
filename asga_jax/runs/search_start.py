"""What a search starts from: ranges of real images, and measured scores."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from asga_jax import data as data_lib
from asga_jax import search
from asga_jax.data import batches as batches_lib
from asga_jax.quantization import calibration
from asga_jax.runs import build, scores
from asga_jax.runs import config as config_lib
from asga_jax.training import placement, search_settings
from asga_jax.training import state as state_lib

# Scores of the network that a search starts from, in its work directory.
FILE = "prior.json"


def settings_without_prior(
  config: ml_collections.ConfigDict,
) -> search_settings.SearchSettings:
  """Make the settings of a search whose logits are set later, if at all."""
  settings = config_lib.search_settings(config)
  usual = search_settings.SearchSettings.prior_strength
  return dataclasses.replace(settings, prior_strength=usual)


def check_splits(
  config: ml_collections.ConfigDict, splits: data_lib.Splits
) -> None:
  """Raise ValueError for a split that is smaller than a batch."""
  batches_lib.steps_per_epoch(len(splits.train), config.batch_size)
  batches_lib.steps_per_epoch(len(splits.train), config.eval_batch_size)
  if config.search.mode == "bilevel":
    batches_lib.steps_per_epoch(len(splits.heldout), config.batch_size)


def set_ranges(
  config: ml_collections.ConfigDict,
  made: search.Search,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
) -> search.Search:
  """Take a search's initial ranges from its first training batch.

  Args:
    config: of the search.
    made: from `build_search`.
    dataset: the proxy.
    splits: its parts.

  Returns:
    The search, ready for its first step.

  Raises:
    ValueError: a split that is smaller than a batch.
  """
  check_splits(config, splits)
  example = batches_lib.batch_at(
    splits.train, 0, batch_size=config.batch_size, seed=config.search.seed
  )
  plain = build.make_prepare(config, dataset, train=False)
  images = plain(jax.random.key(0), {"image": jnp.asarray(example["image"])})
  return _recalibrated(made, images["image"])


def set_logits(
  config: ml_collections.ConfigDict,
  made: search.Search,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
  directory: pathlib.Path,
) -> search.Search:
  """Start a search's logits from scores of the network that it starts from.

  Args:
    config: of the search; `config.prior` says which, and on how many images.
    made: from `set_ranges`.
    dataset: the proxy.
    splits: its parts; training images are measured on.
    directory: the work directory, which keeps the scores.

  Returns:
    The search, ready for its first step.
  """
  found = scores.measure(
    config,
    search.trained_model(made, made.state),
    score=config.prior.score,
    images=config.prior.images,
    dataset=dataset,
    splits=splits,
    file=directory / FILE,
  )
  strength = config.search.prior_strength
  return search.with_prior(made, found[config.prior.score], strength)


def _recalibrated(made: search.Search, inputs: Any) -> search.Search:
  """Start a search over from the ranges of real inputs.

  Its model was made searchable by the shape of its input alone; weights and all
  that is not quantizers' stay.
  """
  old = made.state
  # One copy, since other devices and processes have no part in this.
  params, rest = jax.tree.map(
    lambda x: x.addressable_data(0),
    placement.gathered((old.params, old.rest), made.mesh),
  )
  params = params._replace(logits=made.parts.layout.unstack(params.logits))
  model = state_lib.merge_model(made.graphdef, params, rest)
  model = calibration.calibrate(model, inputs)
  _, params, rest = state_lib.split_model(model)

  def found(new, old):
    """Give a value that is not bound to a device; keys stay as they were."""
    random = jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
    return old if random else np.asarray(new)

  state = old._replace(
    params=old.params._replace(
      quantizers=jax.tree.map(found, params.quantizers, old.params.quantizers)
    ),
    rest=jax.tree.map(found, rest, old.rest),
  )
  return made._replace(state=placement.place_like(state, old))
