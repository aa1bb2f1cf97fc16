"""A search of a configuration before its first step, without data and with."""

import jax
import jax.numpy as jnp
import ml_collections

from asga_jax import data as data_lib
from asga_jax import search
from asga_jax.data import batches as batches_lib
from asga_jax.runs import build as search_parts
from asga_jax.runs import config as search_config
from asga_jax.runs import config_checks
from asga_jax.training import sharding


def split(
  config: ml_collections.ConfigDict, dataset: data_lib.Dataset
) -> data_lib.Splits:
  """Part the proxy as a search's configuration says."""
  bilevel = config.search.mode == "bilevel"
  return data_lib.split_proxy(
    dataset,
    heldout_fraction=config.data.heldout_fraction if bilevel else 0.0,
    seed=config.search.seed,
  )


def build(
  config: ml_collections.ConfigDict,
  info: data_lib.DatasetInfo,
  *,
  trained: bool = True,
) -> search.Search:
  """Build a search whose step can be compiled, without the proxy's images.

  Args:
    config: of the search.
    info: of the proxy.
    trained: whether to load the weights that the configuration names, if any.

  Returns:
    The search, for `calibrate`. Its step takes batches of
    `search_loop.batches`.

  Raises:
    ValueError: bad values or weights, no layer with a choice, images that are
      larger than their size in the network, an infeasible budget, or a batch
      that is larger than the proxy or does not divide over the devices.
  """
  mesh = sharding.data_mesh()
  sharding.check_batch_size(config.batch_size, mesh)
  batches_lib.steps_per_epoch(info.train_images, config.batch_size)
  batches_lib.steps_per_epoch(info.train_images, config.eval_batch_size)
  prepare = search_parts.make_prepare(config, info, train=True)
  # A size that does not fit the images is told here.
  jax.eval_shape(prepare, jax.random.key(0), batches_lib.batch_shapes(info, 1))
  model = search_parts.make_searchable(
    config,
    info.num_classes,
    None,
    trained=trained,
  )
  made = search.start_search(
    model,
    budget=config.budget,
    settings=search_config.make_settings(config),
    costs=search_parts.make_costs(config),
    prepare=prepare,
    mesh=mesh,
  )
  if not any(choice.searched for choice in made.space.choices.values()):
    bits = tuple(config.bits)
    fixed = ", and config.rules leave no choice" if config.rules else ""
    raise config_checks.ConfigError(
      f"config.bits is {bits}{fixed}: there is nothing to search; expected two "
      "bit-widths or more (launch/finetune.py --policy=4bit trains at one)"
    )
  return made


def calibrate(
  config: ml_collections.ConfigDict,
  made: search.Search,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
) -> search.Search:
  """Take a search's initial ranges from its first training batch.

  Args:
    config: of the search.
    made: from `build`.
    dataset: the proxy.
    splits: its parts.

  Returns:
    The search, ready for its first step.

  Raises:
    ValueError: a split that is smaller than a batch.
  """
  batches_lib.steps_per_epoch(len(splits.train), config.batch_size)
  batches_lib.steps_per_epoch(len(splits.train), config.eval_batch_size)
  if config.search.mode == "bilevel":
    batches_lib.steps_per_epoch(len(splits.heldout), config.batch_size)
  example = batches_lib.batch_at(
    splits.train, 0, batch_size=config.batch_size, seed=config.search.seed
  )
  plain = search_parts.make_prepare(config, dataset, train=False)
  images = plain(jax.random.key(0), {"image": jnp.asarray(example["image"])})
  return search.calibrate(made, images["image"])


def start(
  config: ml_collections.ConfigDict,
  dataset: data_lib.Dataset,
  splits: data_lib.Splits,
) -> search.Search:
  """Build a search that is ready for its first step.

  Args:
    config: of the search.
    dataset: the proxy.
    splits: its parts.

  Returns:
    The search.

  Raises:
    ValueError: see `build` and `calibrate`.
  """
  made = build(config, dataset.info)
  return calibrate(config, made, dataset, splits)
